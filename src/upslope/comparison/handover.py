"""The plan of a comparison on its way to the workers: in a file without a name, read by all.

A pipe holds some kilobytes: a parent that writes a data set into one waits for its reader, and for
ever where that is dead. A file takes all at once. Without a name, nobody else reads it, and
nothing is left of it, whoever is killed.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from upslope.files import disk_errors, make_folder


@dataclass(frozen=True)
class Parcel:
    """Bytes for other processes; an argument of a `multiprocessing.Process`."""

    handle: int
    size: int

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _receive, (DupFd(self.handle), self.size)

    def open(self) -> mmap.mmap:
        """Map the bytes into memory."""
        return mmap.mmap(self.handle, self.size, access=mmap.ACCESS_READ)


@dataclass(frozen=True)
class _ParcelMessage:
    """Bytes that travel with the process, on Windows, where a pipe breaks when its reader dies."""

    data: bytes

    def open(self) -> bytes:
        """Return the bytes of the parcel."""
        return self.data


@contextmanager
def handed_over(data: bytes, folder: Path | None) -> Iterator[Any]:
    """Yield a parcel of `data` that child processes can `open`, kept on the disk of `folder`,
    or on that of temporary files.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    if sys.platform == "win32":
        yield _ParcelMessage(data)
        return
    place = folder or Path(tempfile.gettempdir())
    with disk_errors(place):
        make_folder(place)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(data)
            file.flush()
            handle = os.dup(file.fileno())
    try:
        yield Parcel(handle, len(data))
    finally:
        os.close(handle)


def _receive(handle: Any, size: int) -> Parcel:
    return Parcel(os.dup(handle.detach()), size)
