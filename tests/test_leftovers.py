"""Temporary files: whose processes are gone, and whose may live on this machine or on another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from upslope.files import write_text
from upslope.leftovers import process_mark, sweep

DAY = 24 * 3600.0
HERE, NUMBER = process_mark().split("-")
DEAD = 999_999_999


CASES = {
    "of a process that lives": (f"{HERE}-{os.getppid()}", 30 * DAY, True),
    "of one that is gone": (f"{HERE}-{DEAD}", 0.0, False),
    "of one that had this one's number": (process_mark(), 0.0, False),
    "as earlier versions named it": (f"{os.getppid()}", 0.0, True),
    "as they named that of one that is gone": (f"{DEAD}", 0.0, False),
    "another machine's, whatever lives here": (f"0badcafe-{NUMBER}", 0.0, True),
    "another machine's of last week": (f"0badcafe-{DEAD}", 6 * DAY, True),
    "another machine's of long ago": (f"0badcafe-{DEAD}", 8 * DAY, False),
}
"""What a file is -> the mark of its process, its age in seconds, and whether it stays."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_what_living_processes_fill_stays(tmp_path: Path, case: str, form: str) -> None:
    mark, age, stays = CASES[case]
    path = tmp_path / f".table.csv.{mark}.part"
    parts = [path]
    if form == "folder":
        path.mkdir()
        parts = [path / "table.csv", path]
    parts[0].write_text("half")
    for part in parts:
        os.utime(part, (time.time() - age,) * 2)
    sweep(tmp_path)
    assert path.exists() is stays
    if form == "folder" and age and not stays:
        path.mkdir()
        (path / "table.csv").write_text("and more")  # its folder is older than it
        os.utime(path, (time.time() - age,) * 2)
        sweep(tmp_path)
        assert path.exists()
    sweep(tmp_path, is_only_writer=True)
    assert not path.exists()


def test_a_file_that_another_machine_writes_is_left_to_it(tmp_path: Path) -> None:
    """A shared folder: the process there has a number that nobody has here."""
    code = (
        "import sys; from pathlib import Path\n"
        "from upslope import leftovers\n"
        "from upslope.files import write_atomically\n"
        "leftovers._machine = lambda: '0badcafe'\n"
        "def write(temporary):\n"
        "    print(flush=True); sys.stdin.readline(); temporary.write_text('theirs')\n"
        "write_atomically(Path(sys.argv[1]), write)\n"
    )
    path = tmp_path / "table.csv"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        (temporary,) = tmp_path.glob(".*.part")
        elsewhere = temporary.with_name(f".table.csv.0badcafe-{DEAD}.part")
        temporary.rename(elsewhere)  # as its number would be: here, none has it
        write_text(path, "ours")
        assert elsewhere.is_dir()
        elsewhere.rename(temporary)
        _, errors = other.communicate("\n")
    assert other.returncode == 0, errors
    assert path.read_text() == "theirs"
