"""Temporary files whose names say which process of which machine fills them.

Where that process is gone, they are left over, and whoever writes beside them removes them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

_WEEK = 7 * 24 * 3600.0
"""Seconds for which a file of another machine, whose processes nobody here can ask after, must have
stayed as it is to count as left over: no file takes so long to fill without growing."""


def process_mark() -> str:
    """Return what stands before `.part` in the name of a temporary file of this process.

    Machines that share a folder, and containers, number their processes each by itself.
    """
    return f"{_machine()}-{os.getpid()}"


@cache
def _machine() -> str:
    """Eight digits that tell this machine, and this container in it, from others."""
    names = [socket.gethostname()]
    with suppress(OSError):  # Linux alone numbers processes by container
        names.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def sweep(folder: Path, pattern: str = ".*.part", *, is_only_writer: bool = False) -> None:
    """Remove the temporary files that killed processes left in a folder.

    pattern: of their names. is_only_writer: nobody else writes there, so that those that bear the
    number of a living process are left over as well: numbers are used again.
    """
    for leftovers in folder.glob(pattern):
        if not is_only_writer and _may_be_filled(leftovers):
            continue
        if leftovers.is_dir() and not leftovers.is_symlink():
            shutil.rmtree(leftovers, ignore_errors=True)
        else:
            leftovers.unlink(missing_ok=True)


def _may_be_filled(path: Path) -> bool:
    """Whether a living process may be filling a temporary file or folder."""
    machine, _, number = path.name.split(".")[-2].rpartition("-")
    if machine in ("", _machine()):  # earlier versions did not name the machine
        return _lives(number)
    return _newest_change(path) > time.time() - _WEEK


def _lives(number: str) -> bool:
    """Whether another process of this number may be running on this machine."""
    if not number.isdigit() or int(number) == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _newest_change(path: Path) -> float:
    """When a file, or anything in a folder, was changed last; 0 where it is gone meanwhile."""
    newest = 0.0
    with suppress(OSError):
        newest = path.lstat().st_mtime
        for entry in path.rglob("*"):
            newest = max(newest, entry.lstat().st_mtime)
    return newest
