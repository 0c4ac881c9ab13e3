"""The campaign of faults in its short form; the long one is `benchmarks/labelling_faults.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "labelling_faults.py"


@pytest.mark.long
@pytest.mark.parametrize(("labels", "faults"), [(160, 1), (400, 2)])
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: limits of a running process")
def test_no_label_is_lost_doubled_or_changed_under_faults(labels: int, faults: int) -> None:
    pytest.importorskip("starlette", reason="needs the extra `label`: starlette")
    pytest.importorskip("uvicorn", reason="needs the extra `label`: uvicorn")
    counts_of_faults = ["--kills", str(faults), "--full", str(faults)]
    command = [sys.executable, str(SCRIPT), "--labels", str(labels), *counts_of_faults]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert counts["labels"] == labels
    assert counts.get("requests", 0) + counts.get("receipts", 0) > 0
    assert (counts["kills"], counts["full_disks"]) == (faults, faults)
