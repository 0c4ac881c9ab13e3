from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from upslope.comparison.handover import handed_over
from upslope.errors import RunError
from upslope.files import (
    csv_text,
    new_folder,
    read_digested_json,
    save_array,
    to_json,
    write_digested_json,
    write_text,
)
from upslope.leftovers import process_mark
from upslope.report.text_tables import markdown_table


def test_json_has_null_in_place_of_what_is_no_number() -> None:
    value = {"a": [1.5, math.nan, (math.inf, True)], 2: "é", "path": Path("x")}
    text = to_json(value)
    assert text.endswith("}\n")

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": [1.5, None, [None, True]], "2": "é", "path": "x"}


def test_json_has_numbers_of_numpy_as_numbers() -> None:
    """A float32 that is NaN was the text "nan", and a count the text "3"."""
    value = {"a": np.float32("nan"), "b": np.float32(1.5), "c": np.int64(3), "d": np.bool_(True)}
    array = np.array([[1, np.inf]], dtype=np.float32)
    assert json.loads(to_json({**value, "e": array})) == {
        "a": None, "b": 1.5, "c": 3, "d": True, "e": [[1, None]],
    }  # fmt: skip


def test_text_is_written_as_it_is_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "text"
    write_text(file, "old")
    write_text(file, "é\r\nb\n")
    assert file.read_bytes() == "é\r\nb\n".encode()
    assert [path.name for path in file.parent.iterdir()] == ["text"]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "text"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert file.read_text() == "old"
    with pytest.raises(RunError, match=re.escape(str(file / "inside"))):
        write_text(file / "inside", "text")


@pytest.mark.parametrize("library", ["python", "arrow"])
def test_the_error_of_a_file_that_cannot_be_written_names_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    def refuse(path: Path, *_: object) -> None:
        if library == "arrow":  # as it says what the system said
            raise OSError(errno.EACCES, f"Failed to open local file '{path}'.")
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch" if library == "arrow" else "mkdir", refuse)
    with pytest.raises(RunError) as error:
        write_text(tmp_path / "scores.csv", "text")
    assert ".part" not in str(error.value)
    assert f"{tmp_path / 'scores.csv'} but got: Permission denied. Check" in str(error.value)


def test_no_flipped_bit_in_digested_json_changes_what_is_read(tmp_path: Path) -> None:
    file, data = tmp_path / "data.json", {"key": "k", "loss": [0.1, 2e-17], "name": "é"}
    write_digested_json(file, data)
    whole = file.read_bytes()
    assert read_digested_json(file) == data
    noticed = 0
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            read = read_digested_json(file)
            noticed += read is None
            # The name of the digest itself may be damaged: all else is then as it was.
            assert read is None or {k: read.get(k) for k in data} == data
    assert noticed > 7 * len(whole)


def test_json_without_a_digest_is_taken_and_what_is_none_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    assert read_digested_json(file) is None
    for text, expected in (('{"a": 1}', {"a": 1}), ("[1]", None), ("1", None), ("[" * 9999, None)):
        file.write_text(text)
        assert read_digested_json(file) == expected


def test_markdown_has_as_many_marks_as_columns() -> None:
    lines = markdown_table(("a", "b", "c"), [("x", "1", "2")], text_columns=2).split("\n")
    assert lines == ["| a | b | c |", "| --- | --- | ---: |", "| x | 1 | 2 |"]


def test_csv_reads_back() -> None:
    rows = [["a,b", 'say "x"', "1"], ["", "two\nlines", "2"]]
    text = csv_text(("p", "q", "r"), rows)
    assert list(csv.reader(io.StringIO(text))) == [["p", "q", "r"], *rows]
    assert "\r" not in text


@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_a_new_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path, empty: bool) -> None:
    folder = tmp_path / "above" / "new"
    if empty:
        folder.mkdir(parents=True)
    with pytest.raises(RunError, match="File exists"), new_folder(folder) as temporary:
        [(temporary / "half").touch(exist_ok=False) for _ in range(2)]
    assert [*tmp_path.rglob("*")] == [folder.parent, *([folder] if empty else [])]
    left = subprocess.run(  # a process that is killed in the middle
        [
            sys.executable, "-c",
            "import os, sys; from pathlib import Path; from upslope.files import new_folder\n"
            "with new_folder(Path(sys.argv[1])) as temporary:\n"
            "    (temporary / 'half').touch(); os._exit(9)",
            folder,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )  # fmt: skip
    assert left.returncode == 9
    assert len([*folder.parent.glob(".*.part")]) == 1
    with new_folder(folder) as temporary:
        assert not (folder / "whole").exists()
        (temporary / "whole").touch()
    assert {*tmp_path.rglob("*")} == {folder.parent, folder, folder / "whole"}


def test_an_empty_folder_beside_which_nothing_can_be_made_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, make = tmp_path / "mounted", Path.mkdir
    folder.mkdir()

    def mkdir(path: Path, *arguments: object, **options: object) -> None:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with new_folder(folder) as temporary:
        (temporary / "a").mkdir()
        (temporary / "a" / "whole").touch()
    assert {*tmp_path.rglob("*")} == {folder, folder / "a", folder / "a" / "whole"}
    with pytest.raises(RunError, match="Permission denied"), new_folder(tmp_path / "other"):
        pass


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_current_folder_is_filled_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    number = here.stat().st_ino
    with new_folder(Path(name)) as temporary:
        temporary.chmod(0o700)
        (temporary / "whole").touch()
    assert {*tmp_path.rglob("*")} == {here, here / "whole"}
    assert (here.stat().st_ino, here.stat().st_mode & 0o777) == (number, 0o700)


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX systems")
def test_the_folder_of_a_comparison_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to workers is written first: the folder must then be on the disk by name."""
    synced: list[Path] = []
    monkeypatch.setattr("upslope.files.sync_folder", synced.append)
    with handed_over(b"plan", tmp_path / "runs" / "digits"):
        assert synced == [tmp_path, tmp_path / "runs"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the size of files")
@pytest.mark.parametrize("count", [8, 100_000])
def test_an_array_that_the_disk_does_not_take_is_an_error(tmp_path: Path, count: int) -> None:
    """Its header fits, its numbers do not: NumPy itself says nothing of the smaller one."""
    program = f"""
import resource, signal, numpy as np
from upslope.files import save_array
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (128, 128))
try:
    with open({str(tmp_path / "array.npy")!r}, "wb") as file:
        save_array(file, np.ones({count}))
except OSError:
    print("told")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "told\n", done.stderr


def test_an_array_is_as_numpy_writes_it(tmp_path: Path) -> None:
    """Byte for byte, of rows with fields as well."""
    for array in (np.arange(6.0).reshape(2, 3), np.zeros(3, [("a", "<f4", (2,)), ("b", "u1")])):
        with (tmp_path / "ours.npy").open("wb") as file:
            save_array(file, array)
        np.save(tmp_path / "theirs.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@pytest.mark.parametrize("name", ["a[1].csv", "what?", "[!a]", "*"])
def test_leftovers_of_a_name_as_patterns_have_are_removed(tmp_path: Path, name: str) -> None:
    """By a killed process of the same number, as containers give it again."""
    for part in ("file", "folder"):
        (tmp_path / part / f".{name}.{process_mark()}.part").mkdir(parents=True)
    write_text(tmp_path / "file" / name, "whole")
    with new_folder(tmp_path / "folder" / name) as folder:
        (folder / "x").touch()
    assert [p.name for p in (tmp_path / "file").iterdir()] == [name]
    assert [p.name for p in (tmp_path / "folder").iterdir()] == [name]
