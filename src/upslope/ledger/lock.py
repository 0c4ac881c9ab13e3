"""One process a run directory: an operating-system lock, which dies with the process."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import IO

from upslope.errors import RunError
from upslope.files import disk_errors

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


class RunLock:
    """Holds `<folder>/run.lock` from construction to `release`, or to the end of the process.

    Raises:
        RunError: another process holds it; the message names its pid and host.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "run.lock"
        with disk_errors(path):
            file = path.open("a+", encoding="utf-8")
        try:
            _acquire(file)
        except OSError as error:
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            raise RunError(
                f"Expected to be alone in {folder} but {holder} is working there. Wait for it, end "
                "it, or choose another folder."
            ) from error
        with disk_errors(path):
            file.seek(0)
            file.truncate()
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
        self._file = file

    def release(self) -> None:
        """Let others in. The file stays: removing it could free a lock that another just took."""
        self._file.close()


def _holder(text: str) -> str:
    try:
        who = json.loads(text)
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
