"""A name that something of another kind bears: said plainly, before any work, with what to do."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope.cli import app
from upslope.errors import RunError
from upslope.files import write_text

RUNS = Path(__file__).parent / "fixtures/earlier/compared"


def call(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and what is said, on one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    source = next(RUNS.glob("*/seed-0"))
    shutil.copytree(source, "run")
    return Path("run")


@pytest.mark.parametrize("command", ["report", "status", "verify", "tell"])
def test_a_file_is_not_said_to_be_missing(run: Path, command: str) -> None:
    Path("labels.csv").write_text("id,label\n")
    more = ["labels.csv"] if command == "tell" else []
    code, text = call(command, run / "ledger.sqlite", *more)
    assert code == 6
    assert "is a file. Give the folder in which ledger.sqlite lies." in text
    code, text = call(command, "nowhere", *more)
    assert code == 6
    assert "nowhere" in text
    assert "there is no such folder" in text


@pytest.mark.parametrize("command", ["report", "repair"])
def test_a_file_where_a_folder_is_to_be(run: Path, command: str) -> None:
    Path("scores.csv").write_text("id,score\n")
    code, text = call(command, run, "--out", "scores.csv")
    assert code == 6
    assert "scores.csv is a file, not a folder." in text
    assert "move the file away" in text
    assert Path("scores.csv").read_text() == "id,score\n"


@pytest.mark.parametrize("command", ["score", "predict", "select"])
def test_a_folder_where_a_file_is_to_be(run: Path, command: str) -> None:
    Path("out.csv").mkdir()
    code, text = call(command, run, "--out", "out.csv")
    assert code == 2
    assert "Expected to be able to write out.csv but out.csv is a folder." in text


def test_a_file_above_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunError, match=r"x\.txt but .*file is a file, not a folder"):
        write_text(tmp_path / "file" / "more" / "x.txt", "lost")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", ["report", "status", "verify", "score", "predict", "select"])
def test_a_name_that_no_file_can_have_is_told(run: Path, command: str) -> None:
    code, text = call(command, "x" * 300)
    assert code == 6
    assert "File name too long. Check the path and its permissions." in text


def test_a_folder_of_somebody_elses_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even to ask whether there is such a file is refused there, which root cannot meet."""

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    code, text = call("status", "theirs/run")
    assert code == 6
    assert "'theirs/run' but got: Permission denied." in text


def test_what_the_encoding_of_the_output_lacks_is_shown_as_its_code(run: Path) -> None:
    """The table of a report, with its ±, ended in a traceback in a locale without it."""
    run.rename("größe")
    result = subprocess.run(
        [sys.executable, "-m", "upslope", "verify", "größe"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert rb"gr\xf6\xdfe: sound" in result.stdout


@pytest.mark.skipif(os.name != "posix", reason="closes a standard stream by the shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_is_none(run: Path, closed: str) -> None:
    """Every command, --help too, ended in a traceback as it was imported."""
    command = f"{sys.executable} -m upslope verify run {closed}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
