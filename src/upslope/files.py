"""Files that are whole or absent, JSON without NaN, and the one error for a disk that is full.

Every room that writes results calls it.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upslope.errors import RunError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `path` into a RunError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"Expected room on the disk for {path} but it is full. Free some space and run the "
                "same command again: nothing recorded before is lost."
            ) from error
        raise RunError(
            f"Expected to be able to write {path} but got: {error}. Check the folder and its "
            "permissions, then run the same command again: nothing recorded before is lost."
        ) from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, and give it the name `path` once it is on the disk.

    A kill at any moment leaves the old file or the new one, never a torn one.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all: `write_atomically`.

    Line ends stay as they are in `text`, on every system.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    write_atomically(path, lambda temporary: _write(temporary, text))


def to_json(value: Any) -> str:
    """Return plain data as indented JSON that ends in a line break, null in place of NaN.

    value: mappings, lists, tuples, strings, numbers, None; infinities become null as NaN does,
        since JSON has neither. Any other object is written as its `str`.
    """
    return json.dumps(_without_nan(value), indent=2, default=str) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
