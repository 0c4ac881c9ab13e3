"""Limits of the size of files are told as such."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from upslope.cli.console import telling_errors
from upslope.file_limits import as_room_error, is_too_large, size_advice

LIMITED = """
import resource
from pathlib import Path
from upslope.errors import RunError

def at_most(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

folder = Path({folder!r})
try:
    {does}
except RunError as error:
    print(error)
"""
WRITES = {
    "a text": "from upslope.files import write_text; at_most(1000);"
    "write_text(folder / 'a.txt', 'x' * 5000)",
    "weights": "import torch; from upslope.checkpoints import save_tensors; at_most(1000);"
    "save_tensors(folder / 'a.safetensors', {'a': torch.ones(5000)}, {})",
    "a ledger": "import sqlite3; from upslope.ledger.log import sqlite_errors\n"
    "    with sqlite_errors(folder / 'a.sqlite'):\n"
    "        db = sqlite3.connect(folder / 'a.sqlite')\n"
    "        at_most(1000); db.execute('CREATE TABLE a (b)')",
    "temporary files": "import tempfile; from upslope.reading import temporary_folder\n"
    "    tempfile.tempdir = None; at_most(0)\n"
    "    with temporary_folder(): pass",
    "what is printed": "from upslope.display import SafeConsole\n"
    "    at_most(1000); SafeConsole(file=(folder / 'a').open('w')).print('x' * 5000)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the size of files")
@pytest.mark.parametrize("what", WRITES)
def test_a_file_beyond_the_limit_is_told_with_the_limit(tmp_path: Path, what: str) -> None:
    code = LIMITED.format(folder=str(tmp_path), does=WRITES[what])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    size = 0 if what == "temporary files" else "1,000"
    advice = f"raise the limit of the size of files, {size} bytes for this process (`ulimit -f un"
    assert advice in done.stdout.replace("Raise", "raise")
    assert "permissions" not in done.stdout


def test_nothing_is_advised_where_there_is_no_limit() -> None:
    assert size_advice() == ""


def test_only_a_want_of_room_is_one() -> None:
    assert as_room_error(PermissionError(13, "Permission denied")) is None
    assert as_room_error(ValueError("File too large")) is None
    assert not is_too_large(OSError(28, "No space left on device"))
    for error in (
        OSError(28, "No space left on device"),
        OSError(27, "File too large"),
        FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
    ):
        assert "set TMPDIR" in str(as_room_error(error))


def test_a_command_without_a_folder_for_temporary_files_tells_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A library looks for one as it is imported."""
    with pytest.raises(typer.Exit) as ended, telling_errors():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")
    assert ended.value.exit_code == 6
    told = capfd.readouterr().err
    assert told.startswith("error Expected to be able to write a file but got")
    assert "nothing recorded before is lost" in told
