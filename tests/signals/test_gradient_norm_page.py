"""The code of docs/gradient-norm-scores.md runs, top to bottom, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from upslope.errors import GradientNormWarning

PAGE = Path(__file__).parents[2] / "docs" / "gradient-norm-scores.md"


def test_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    # At the ties of section 3 all norms are zero, which is told.
    with pytest.warns(GradientNormWarning, match="exactly zero"):
        exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
