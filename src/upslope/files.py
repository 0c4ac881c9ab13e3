"""Files that are whole or absent, JSON without NaN, and the one error for a disk that is full.

Every room that writes results calls it.
"""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from upslope.errors import RunError
from upslope.file_limits import WANT_OF_ROOM, is_too_large, size_advice
from upslope.leftovers import process_mark, sweep
from upslope.memory import raise_memory_error

if TYPE_CHECKING:
    import numpy as np

_DIGEST = "content_sha256"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""How cells begin that a spreadsheet takes for a formula, the wide forms of East Asia included."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `path` into a RunError."""
    try:
        yield
    except OSError as error:
        raise_memory_error(error)
        if error.errno in WANT_OF_ROOM:
            raise RunError(
                f"Expected room on the disk for {path} but it is full. Free some space and run the "
                "same command again: nothing recorded before is lost."
            ) from error
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            place = Path(os.fsdecode(error.filename2 or error.filename or path))
            if problem := name_in_use(place, as_file=isinstance(error, IsADirectoryError)):
                raise RunError(f"Expected to be able to write {path} but {problem}") from error
        fix = "check the folder and its permissions"
        if is_too_large(error):
            fix = size_advice() or "write to a disk that takes larger files"
        raise RunError(
            f"Expected to be able to write {path} but got: {_words_of(error)}. "
            f"{fix[0].upper()}{fix[1:]}, "
            "then run the same command again: nothing recorded before is lost."
        ) from error


def _words_of(error: OSError) -> str:
    """Return what the system says, without the name of a temporary file, which nobody asked for."""
    is_of_temporary = f".{process_mark()}.part" in str(error)
    return os.strerror(error.errno) if is_of_temporary and error.errno else str(error)


def name_in_use(path: Path, *, as_file: bool) -> str:
    """Return what of another kind bears a name, and what to do; "" where nothing does.

    as_file: whether a file is to be written there, not a folder.
    """
    for place in (*reversed(path.parents), *([] if as_file else [path])):
        if os.path.lexists(place) and not place.is_dir():
            return f"{place} is a file, not a folder. Choose another name, or move the file away."
    if as_file and path.is_dir():
        return f"{path} is a folder. Choose another name, or move the folder away."
    return ""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, and give it the name `path` once it is on the disk.

    A kill at any moment leaves the old file or the new one, never a torn one. The temporary file
    lies in a folder of its own beside `path`, so that what a library leaves there of its own
    accord can be told; the next write of `path` removes what a killed process left.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    folder = path.with_name(f".{path.name}.{process_mark()}.part")
    temporary = folder / path.name
    with disk_errors(path):
        make_folder(path.parent)
        sweep(path.parent, f".{glob.escape(path.name)}.*.part")
        try:
            folder.mkdir()
            temporary.touch()
            mode = temporary.stat().st_mode  # as of any new file: libraries choose others
            write(temporary)
            temporary.chmod(mode)
            sync_file(temporary)
            temporary.replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        sync_folder(path.parent)


def save_array(file: BinaryIO, array: np.ndarray[Any, Any]) -> None:
    """Write an array in NumPy's format to an open file, so that an error of the disk is raised.

    Of a file of the system's, NumPy has the C library write the numbers, and passes over what that
    says as it empties its buffer: a small array was lost without a word.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    import numpy as np  # not at the top: `--help` answers without it

    class Writer:
        """Nothing but the method that NumPy needs, so that it writes through Python."""

        write = staticmethod(file.write)

    np.save(Writer(), array, allow_pickle=False)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends it is called `folder`, as a whole.

    An error or a kill inside leaves nothing of that name, so that the same call may be made again.
    folder: absent or empty. Where it is empty and cannot be replaced, as where a disk is mounted
    there, or a shell is in it, it is filled by renames of one entry after the other.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    if folder.name in ("", ".."):
        folder = folder.resolve()
    name = f".{folder.name}.{process_mark()}.part"
    with disk_errors(folder):
        make_folder(folder.parent)
        for place in (folder.parent, folder):
            sweep(place, f".{glob.escape(folder.name)}.*.part")
        temporary = folder.with_name(name)
        try:
            temporary.mkdir()
            if folder.is_dir() and not _is_replaceable(folder, temporary):
                temporary.rmdir()
                raise OSError(errno.EXDEV, "no place beside it", str(folder))
        except OSError:
            if not folder.is_dir():
                raise
            temporary = folder / name
            temporary.mkdir()
        try:
            if folder.is_dir():
                temporary.chmod(folder.stat().st_mode)
            yield temporary
            for part, _, _ in os.walk(temporary):
                sync_folder(Path(part))
            if temporary.parent == folder:
                for entry in sorted(temporary.iterdir()):
                    entry.rename(folder / entry.name)
                folder.chmod(temporary.stat().st_mode)
            else:
                if folder.is_dir() and os.name != "posix":
                    folder.rmdir()
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(folder)
        sync_folder(folder.parent)


def _is_replaceable(folder: Path, temporary: Path) -> bool:
    """Whether a folder can be renamed in the place of an empty one: not where a disk is mounted
    there, nor in the place of the current one, which would be gone for this process and its shell.
    """
    return temporary.stat().st_dev == folder.stat().st_dev and not folder.samefile(os.curdir)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all: `write_atomically`.

    Line ends stay as they are in `text`, on every system.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    write_atomically(path, lambda temporary: _write(temporary, text))


def to_json(value: Any) -> str:
    """Return plain data as indented JSON that ends in a line break, null in place of NaN.

    value: mappings, lists, tuples, strings, numbers, None, arrays and numbers of NumPy; infinities
        become null as NaN does, since JSON has neither. Any other object is written as its `str`.
    """
    return json.dumps(_without_nan(value), indent=2, default=str) + "\n"


def from_json(
    text: str | bytes, make_object: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Return what JSON text holds.

    make_object: of the pairs of an object, as `object_of_pairs`; None for a plain dict.

    Raises:
        ValueError: it is no JSON, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of a JSON parser's pairs: what `json.loads` takes as `object_pairs_hook`.

    Raises:
        ValueError: a key is there twice, of which the last would count without a word.
    """
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a key of {', '.join(row)[:60]} is there twice")
    return row


def json_digest(value: object) -> str:
    """Return the SHA-256 of plain data as JSON, in hexadecimal; the order of keys does not count.

    value: what `json.dumps` takes.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_digested_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as JSON with the SHA-256 of its content, whole or not at all.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    write_text(path, json.dumps({**data, _DIGEST: json_digest(data)}, indent=1))


def read_digested_json(path: Path, consequence: str = "") -> dict[str, Any] | None:
    """Return what `write_digested_json` wrote; None where there is no file, or a damaged one.

    A file without a digest, of an earlier version, is taken as it is.

    consequence: what happens where the file is damaged, as "the metric is computed again", for a
        warning; without it there is none.
    """
    try:
        data = _read_sound(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        data = None
    if data is None and consequence:
        warnings.warn(f"{path} is damaged: {consequence}.", stacklevel=3)
    return data


def _read_sound(path: Path) -> dict[str, Any] | None:
    data: dict[str, Any] = from_json(path.read_text(encoding="utf-8"))
    if _DIGEST in data:
        return data if data.pop(_DIGEST) == json_digest(data) else None
    # Where the name of the digest is what is damaged, its value is that of all the rest.
    return None if any(_is_digest_of_rest(data, name) for name in data) else data


def _is_digest_of_rest(data: Mapping[str, Any], name: str) -> bool:
    rest = {key: value for key, value in data.items() if key != name}
    return bool(data[name] == json_digest(rest))


def _without_nan(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of NumPy: JSON knows its float64 alone
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def safe_cell(cell: str) -> str:
    """Return a cell of a CSV file with an apostrophe before what a spreadsheet runs as a formula.

    Numbers stay as they are, with a decimal comma too. A cell that begins with apostrophes and goes
    on so gets one more, so that `plain_cell` returns each cell as it was.
    """
    if not cell.lstrip("'").startswith(FORMULA):
        return cell
    try:
        float(cell.replace(",", ".", 1))
    except ValueError:
        return f"'{cell}"
    return cell


def plain_cell(cell: str) -> str:
    """Return a cell without the apostrophe that `safe_cell` put before it."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def csv_line(cells: Iterable[object]) -> str:
    """Return a line of a CSV file, ended by a line feed; line breaks of every kind are quoted."""
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)  # quotes what occurs in its own end of lines, "\r\n"
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV table, its lines ended by a line feed.

    head: the column names. rows: cells, written as `str` of them, quoted where they need it; text
    that a spreadsheet would run as a formula gets an apostrophe in front (`safe_cell`).
    """
    return "".join(
        csv_line(safe_cell(cell) if isinstance(cell, str) else cell for cell in row)
        for row in (head, *rows)
    )


def reserve(handle: int, size: int) -> None:
    """Give an open file its size, with room on the disk: a file mapped into memory that meets a
    full disk later would end the process (SIGBUS).

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    os.lseek(handle, 0, os.SEEK_END)
    while (left := size - os.lseek(handle, 0, os.SEEK_CUR)) > 0:
        os.write(handle, bytes(min(left, 1 << 20)))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; a new one survives a power cut as its files do."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Have the content of a file on the disk on return.

    Raises:
        OSError: the disk says that it is not.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
