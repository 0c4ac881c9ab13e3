"""Tells files that cannot be written for want of room as such, with what to do.

A limit of the size of files (`ulimit -f`) looks like a fault of the disk to most libraries, so it
is named wherever a process has one.
"""

from __future__ import annotations

import errno
import sys

from upslope.errors import RunError, first_line

if sys.platform != "win32":
    import resource

WANT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says of a full disk, or a full share of it."""
_REFUSALS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.EIO)
"""What the operating system says of a path that it does not let a process have."""
_NO_TEMPORARY = "No usable temporary directory"
"""What Python says where no folder of temporary files takes a file of a few bytes."""


def is_too_large(error: OSError) -> bool:
    """Return whether a file would have become larger than this process may write."""
    return error.errno == errno.EFBIG or "File too large" in str(error)  # safetensors' own words


def size_advice() -> str:
    """Return what to do about the limit of the size of files, "" where this process has none."""
    if sys.platform == "win32":
        return ""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f"raise the limit of the size of files, {limit:,} bytes for this process "
        "(`ulimit -f unlimited`)"
    )


def as_room_error(error: BaseException) -> RunError | None:
    """Return what to tell of an error that is a want of room for files, None for any other."""
    if not isinstance(error, OSError):
        return None
    if (
        error.errno not in WANT_OF_ROOM
        and not is_too_large(error)
        and _NO_TEMPORARY not in str(error)
    ):
        return None
    fixes = ["Free some space", "set TMPDIR to a folder that can be written", size_advice()]
    return RunError(
        f"Expected to be able to write a file but got: {first_line(error)}. "
        f"{', or '.join(filter(None, fixes))}; then run the same command again: nothing recorded "
        "before is lost."
    )


def as_path_error(error: BaseException) -> RunError | None:
    """Return what to tell of a path that the operating system refuses, None for any other error.

    Even the question whether there is such a file fails so, for a name of more than 255 bytes or
    in a folder of somebody else's.
    """
    if not isinstance(error, OSError) or error.errno not in _REFUSALS or error.filename is None:
        return None
    return RunError(
        f"Expected to be able to use {error.filename!r} but got: {error.strerror}. Check the path "
        "and its permissions."
    )
