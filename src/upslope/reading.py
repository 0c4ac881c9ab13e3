"""Reading files that may be damaged or hostile: one error, and memory only after a check.

Readers of data call it before they hand a file to a library. `limited_to` sets, for the time that
a data set is opened, how much memory one file may ask for: the option `data.read_limit`.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError, RunError, UpslopeError
from upslope.file_limits import size_advice
from upslope.memory import raise_memory_error

READ_LIMIT = 4.0
"""Default of `data.read_limit`, in GiB."""
_GIB = 2**30
_CHUNK = 1 << 20  # bytes that are unpacked at once
_WRITING_FAILED = 3  # exit code of a script of `read_in_child`, as `datasets.mat_child` has it
_limit: ContextVar[float] = ContextVar("upslope_read_limit", default=READ_LIMIT * _GIB)


@contextmanager
def limited_to(gib: float | None) -> Iterator[None]:
    """Let each file take so many GiB of memory while the block runs; None for the default."""
    token = _limit.set((READ_LIMIT if gib is None else gib) * _GIB)
    try:
        yield
    finally:
        _limit.reset(token)


def read_limit() -> int:
    """Return how many bytes of memory one file may take at present."""
    return int(_limit.get())


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return what changes with a file, by which what was read of it may be kept: its number, size
    and time of change; nothing where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def check_room(byte_count: int, path: object, limit: int | None = None) -> None:
    """Refuse a file that asks for more memory than it may, before any is taken.

    byte_count: bytes that the content takes, by the file's header. limit: bytes that it may take;
        those of `read_limit` where not given.

    Raises:
        DataError: it asks for more.
    """
    most = read_limit() if limit is None else limit
    if byte_count > most:
        gibibytes = min(byte_count, 10**30) / _GIB  # a larger number need not be a float
        raise DataError(
            f"Expected {path} to take at most {most / _GIB:.3g} GiB of memory but its header asks "
            f"for {gibibytes:.3g} GiB. If the file is what it should be, raise "
            f"`data.read_limit` (GiB, {read_limit() / _GIB:g} now); else get it again."
        )


@contextmanager
def reporting_damage(
    wanted_words: str, advice: str, fault_words: str = "reading it failed"
) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one DataError.

    Libraries fail on damaged files in any way there is (KeyError, AssertionError, MemoryError), so
    that every Exception counts; the block should therefore hold calls of the library alone. Errors
    of Upslope's own pass unchanged.

    wanted_words: what the file should be, as "an .npz archive in a/b.npz". advice: what to do.
    fault_words: the words before what the library says.

    Raises:
        DataError: reading failed.
        RunError: memory is short.
    """
    try:
        yield
    except UpslopeError:
        raise
    except Exception as error:
        raise_memory_error(error, of_file=True)
        raise DataError(
            f"Expected {wanted_words} but {fault_words}: {said(error)}. {advice}"
        ) from error


def cannot_open(description: str, path: Path, error: OSError) -> DataError:
    """Return the error of a file that the operating system does not give.

    description: what the file should be, as "a table". error: what the system says.
    """
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file. Check the path."
    elif isinstance(error, IsADirectoryError):
        reason = "it is a folder. Name a file in it."
    else:
        reason = f"reading it failed: {error}. Check the path and its permissions."
    return DataError(f"Expected {description} in {path} but {reason}")


def said(error: BaseException) -> str:
    """Return the message of an error on one line, or the kind of error where it has none."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, MemoryError) and not text:
        return "there is not enough memory"
    return text or type(error).__name__


def check_regular(path: Path) -> None:
    """Refuse what is no plain file: a pipe would be waited for, a device read without end.

    Raises:
        OSError: there is no such file.
        ValueError: it is a pipe, a device or a folder.
    """
    path.stat()
    if not path.is_file():
        raise ValueError("it is no plain file")


def is_file(path: Path) -> bool:
    """Return whether there is a plain file of a name that a data file states, too long or not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, through gzip or bzip2 where its first bytes say so."""
    check_regular(path)
    compression = compression_of(path)
    with path.open("rb") as file:
        if compression == "gzip":
            with gzip.GzipFile(fileobj=file) as content:
                yield cast(IO[bytes], content)
        elif compression == "bzip2":
            with bz2.BZ2File(file) as content:
                yield cast(IO[bytes], content)
        else:
            yield file


def compression_of(path: Path) -> str | None:
    """Return "gzip", "bzip2" or None, by the first bytes of a file."""
    with path.open("rb") as file:
        begins = file.read(3)
    if begins[:2] == b"\x1f\x8b":
        return "gzip"
    return "bzip2" if begins == b"BZh" else None


def read_within_limit(file: IO[bytes], path: object) -> bytes:
    """Return the rest of an open file, compressed or not.

    Raises:
        DataError: it unpacks to more than a file may take.
    """
    parts: list[bytes] = []
    size = 0
    while part := file.read(_CHUNK):
        parts.append(part)
        size += len(part)
        check_room(size, path)
    return b"".join(parts)


def count_rest(file: IO[bytes], path: object, before: int) -> int:
    """Return how many bytes an open file still has, keeping none of them.

    Raises:
        DataError: with the bytes before, they are more than a file may take.
    """
    size = 0
    while part := file.read(_CHUNK):
        size += len(part)
        check_room(before + size, path)
    return size


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of an .npz archive by name, none of them of Python objects.

    Raises:
        DataError: they take more memory than a file may.
        ValueError, OSError, zipfile.BadZipFile and others: the file is damaged, or no archive of
            plain arrays. Callers put this into `reporting_damage`.
    """
    check_regular(path)
    with path.open("rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ValueError("it holds a single array (.npy)")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_room(sum(member.file_size for member in members), path)
        arrays: dict[str, NDArray[np.generic]] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in arrays:
                raise ValueError(f"it holds {member.filename!r}, which is no array of its own name")
            with archive.open(member) as file:
                _check_header(file, member.file_size, member.filename)
            with archive.open(member) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


def _check_header(file: IO[bytes], size: int, name: str) -> None:
    """Refuse an array whose header asks for more bytes than its member of the archive has."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, kind = np.lib.format.read_array_header_2_0(file)
    sound = not kind.hasobject and kind.itemsize > 0 and min(shape, default=0) >= 0
    if not sound or math.prod(shape) * kind.itemsize > size:
        raise ValueError(f"{name} is of type {kind} and shape {shape}, in {size:,} bytes")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, which is removed when the block ends.

    Raises:
        RunError: there is no room for it. Writing into it is the caller's.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="upslope-")
    except OSError as error:
        raise _temporary_fault(error) from error
    with folder as name:
        yield Path(name)


def write_temporary(path: Path, data: bytes) -> None:
    """Write a file into a `temporary_folder`, from where a library reads it.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise _temporary_fault(error) from error


def _temporary_fault(said_of_it: object) -> RunError:
    fixes = ["Free some space there", "set TMPDIR to another folder", size_advice()]
    try:
        place = f" in {tempfile.gettempdir()}"
    except OSError:  # no folder takes any: what was said of it names those that were tried
        place = ""
    return RunError(
        f"Expected room for temporary files{place} but got: {said_of_it}. "
        f"{', or '.join(filter(None, fixes))}; then run the same command again."
    )


def read_in_child(script: Path, path: Path, *arguments: str) -> dict[str, NDArray[Any]]:
    """Read a file by a script in a process of its own, and return the arrays that it saved.

    For libraries that end the whole process on a damaged file. On Linux the process may take no
    more memory than a file may.

    script: called with the file, a folder to save <name>.npy into, the limit in bytes, and the
    arguments; it imports nothing of Upslope, and ends with exit code 3 where it cannot write.

    Raises:
        RunError: the folder for temporary files is full or cannot be written.
        ValueError: the script failed, with the last line of what it said, or its process ended.
    """
    check_regular(path)
    with temporary_folder() as folder:
        limit = str(read_limit())
        # -P: the script's folder does not hide modules of other packages.
        command = [sys.executable, "-P", str(script), str(path), str(folder), limit, *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.run(command, capture_output=True, env=environment, check=False)
        if process.returncode:
            lines = process.stderr.decode(errors="replace").strip().splitlines()
            if process.returncode == _WRITING_FAILED and lines:
                raise _temporary_fault(lines[-1])
            if process.returncode > 0 and lines:
                raise ValueError(lines[-1])
            raise ValueError(f"the process that read it ended with code {process.returncode}")
        return {
            file.stem: np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))
        }
