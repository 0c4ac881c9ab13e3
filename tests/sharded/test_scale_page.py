"""The blocks of docs/scale.md that need no bucket and no Ray run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
ELSEWHERE = ("moto", "--engine ray")


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block of Python and of commands."""
    pattern = r"^```(python|sh)\n(.*?)^```"
    found = re.findall(pattern, PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [(kind, text) for kind, text in found if not any(w in text for w in ELSEWHERE)]


@pytest.mark.long
def test_the_blocks_of_a_folder_run_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kinds = [kind for kind, _ in blocks()]
    assert kinds == ["python", "sh", "python", "sh"]
    printed = ""
    for kind, text in blocks():
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.splitlines():
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
            printed += result.output
    assert "1,400 samples scored, 5 of 5 shards" in printed
    assert "20 samples chosen by core-set" in printed
    assert "100,000,000" in printed
    assert len((tmp_path / "ask.csv").read_text("utf-8").splitlines()) == 21
