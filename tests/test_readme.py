"""The README's code runs, from its first block to its last, as a reader would run it."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from upslope.cli import app
from upslope.pool import PoolView
from upslope.signals import build

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_every_block_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names: dict[str, object] = {"__name__": "readme"}
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "README.md", "exec"), names)
            continue
        for line in code.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            if command == "upslope":
                result = CliRunner().invoke(app, arguments, prog_name="upslope")
                assert result.exit_code == 0, (line, result.stderr)
            else:
                assert command == "make"
                assert arguments[0] in targets()
    assert (tmp_path / "runs" / "first" / "report" / "report.html").is_file()
    assert (tmp_path / "runs" / "python" / "report" / "report.html").is_file()
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1401


def test_the_strategy_of_contributing_works() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    module = types.ModuleType("least_likely")
    sys.modules[module.__name__] = module  # where dataclasses look annotations up
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    strategy = module.LeastLikely()
    (need,) = strategy.needs
    posterior = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]])
    assert build(need)  # the signal exists
    view = PoolView(["a", "b", "c"], {need: posterior})
    assert strategy.select(view, 2, torch.Generator()).ids == ("b", "c")


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / target).exists(), (page.name, target)


def targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
