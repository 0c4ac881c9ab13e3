"""The code of the page on gradient norms runs, from its first block to its last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "gradient-norms.md"


@pytest.mark.parametrize("page", [PAGE], ids=lambda page: page.name)
def test_every_block_runs_in_order(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
        exec(compile(code, page.name, "exec"), names)
    printed = capsys.readouterr().out
    shown = re.search(r"^```text\n(.*?)^0:", page.read_text(encoding="utf-8"), re.S | re.M)
    assert shown
    assert printed.startswith(shown[1])
