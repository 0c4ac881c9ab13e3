"""One process per run directory: an operating-system lock, which dies with the process."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from upslope.errors import RunError
from upslope.files import disk_errors, from_json

if sys.platform == "win32":
    import msvcrt

    def _acquire(file: IO[str]) -> None:
        # Far beyond the text, so that others can still read who holds the lock.
        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
else:
    import fcntl

    def _acquire(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


_LOCK_ERRORS = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
"""What a system says of a lock that somebody else holds; the rest is of a lock it cannot make."""


class HeldElsewhereError(RunError):
    """Another process holds the lock."""


class RunLock:
    """Holds `<folder>/run.lock` from construction to `release`, or to the end of the process.

    Raises:
        HeldElsewhereError: another process holds it; the message names its pid and host.
        RunError: the file system has no locks, or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "run.lock"
        file = _open(path)
        try:
            _acquire(file)
        except OSError as error:
            if error.errno not in _LOCK_ERRORS:
                file.close()
                raise RunError(
                    f"Expected the file system of {folder} to have locks, which keep two processes "
                    f"from one run, but it says: {error}. Choose a folder on a local disk."
                ) from error
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            raise HeldElsewhereError(
                f"Expected to be alone in {folder} but {holder} is working there. Wait for it, end "
                "it, or choose another folder."
            ) from error
        try:
            with disk_errors(path):
                file.seek(0)
                file.truncate()
                json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
                file.flush()
        except BaseException:
            with suppress(OSError):  # what could not be written is tried again
                file.close()
            raise
        self._file = file

    def shared_with_child(self) -> dict[str, Any]:
        """Return the arguments of `subprocess` by which a child holds the lock too, until it ends.

        A kill of this process then lets nobody in while the child works on. Windows has no such
        thing, and there the lock is this process's alone.
        """
        return {"pass_fds": (self._file.fileno(),)} if os.name == "posix" else {}

    def release(self) -> None:
        """Let others in. The file stays: removing it could free a lock that another just took."""
        self._file.close()


def _open(path: Path) -> IO[str]:
    """Open or make the file, and no other one through a link.

    Raises:
        RunError: there is something else of that name, or it cannot be written.
    """
    try:
        with disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except RunError as error:
        if path.is_symlink() or path.is_dir():
            raise RunError(
                f"Expected {path} to be a plain file, which shows who works there, but it is a "
                f"{'link' if path.is_symlink() else 'folder'}. Remove it."
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RunError(
            f"Expected {path} to be a plain file, which shows who works there, but it is a device "
            "or a pipe. Remove it."
        )
    return os.fdopen(handle, "r+", encoding="utf-8", errors="replace")


def _holder(text: str) -> str:
    try:
        who = from_json(text)
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
