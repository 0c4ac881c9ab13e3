"""All files of one run have one mode, that of new files, whichever library writes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent / "report"))
from studies import made_up
from tests.faults.subject import stop_midway

from upslope.experiment.sheet import Question, write_sheet
from upslope.report import summarise, write


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027], ids=oct)
def test_all_files_of_a_run_have_the_mode_of_new_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        stop_midway(tmp_path / "run")  # with a checkpoint of the training, models and the ledger
        write_sheet(tmp_path / "run/to-label.csv", [Question("a")])
        write(summarise(made_up({"random": 0.0, "margin": 0.1})), tmp_path / "run/report")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"ledger.sqlite", "run.lock", "training.safetensors", "report.html"} <= {
        path.name for path in files
    }
    assert any(path.parent.name == "models" for path in files)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in files}
    assert set(modes.values()) == {oct(0o666 & ~mask)}, modes
