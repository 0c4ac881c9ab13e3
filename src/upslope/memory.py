"""Out of memory, said as such and with what to lower.

Rooms that turn errors of libraries into ones of their own ask `as_memory_error` first: a network or
a file is not at fault where memory is short. torch is not imported here.
"""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upslope.errors import RunError, first_line

if sys.platform != "win32":
    import resource  # at once: where memory is short, nothing more can be loaded

_SIGNS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory",
          "bad_alloc", "bad alloc")  # fmt: skip
"""What torch and the system's loader say where the memory of the CPU or of a device is short."""
_AMBIGUOUS = (
    "could not create a primitive",  # oneDNN: also of layers that it does not know
    "could not create a memory",
    "could not execute a primitive",
    "can't start new thread",  # Python: also where there are as many processes as there may be
    "codec configuration error",  # Pillow
)
"""What libraries say for several reasons: want of memory where a limit is nearly reached."""
_LIBRARIES = 1 << 30
"""Bytes of addresses that torch, SciPy and Arrow take once loaded, in builds for the CPU.

With less, OpenBLAS in SciPy looks for memory for ever, or the process ends with `std::bad_alloc`.
Measured by `ulimit -v` before a tiny `upslope run`: 830 MiB were too little, 1,400 enough."""
_BUFFER = 40 << 20
"""Bytes that OpenBLAS, one of which NumPy and SciPy have each, computes in, with some to spare.

It takes 32 MiB at its first product of large matrices (SciPy 1.17, NumPy 2.4). SciPy's looks for
them for ever where there is less room."""
_SIDE = 300
"""Rows of a matrix whose products need the buffer: of 100 they do without."""
_NEARLY = 64 << 20  # bytes: a thread takes 8 MiB of addresses, and what failed may be free again

_has_buffers = False


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a want of memory into a RunError.

    Raises:
        RunError: the memory of the machine or of the device is short.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (memory_error := as_memory_error(error)) is None:
            raise
        raise memory_error from error


def as_memory_error(error: BaseException) -> RunError | None:
    """Return what to tell of an error that is a want of memory, None for any other."""
    if not _is_of_memory(error):
        return None
    said = first_line(error)
    limit = " under the limit that this process has (ulimit -v)" if is_short() else ""
    return RunError(
        f"Expected enough memory for this step but it ran out{limit}: {said}. "
        "Lower training.batch_size (in a new run), experiment.score_batch or the number of "
        "workers, take a smaller network, or a machine with more; the same command goes on: "
        "nothing recorded is lost."
    )


def raise_memory_error(error: BaseException, *, of_file: bool = False) -> None:
    """Raise what to tell of an error that is a want of memory; return where it is any other.

    of_file: it comes from reading a file, whose damaged header may ask for any amount: memory
        counts as short only where this process has nearly as much as it may.

    Raises:
        RunError: memory is short.
    """
    if of_file and not is_short():
        return
    if (memory_error := as_memory_error(error)) is not None:
        raise memory_error from error


def is_short() -> bool:
    """Return whether this process has nearly the most memory that a limit of its own allows.

    Where the machine's memory is what is short, the system ends processes in place of errors.
    """
    return _room() < _NEARLY


def check_room_for_libraries() -> None:
    """Refuse to load torch, SciPy and Arrow under a limit that cannot hold them.

    Raises:
        RunError: there is too little room, and torch is not loaded yet.
    """
    if "torch" not in sys.modules and (room := _room()) < _LIBRARIES:
        raise RunError(
            f"Expected {_LIBRARIES >> 20:,} MiB of memory to load torch, SciPy and Arrow but a "
            f"limit leaves this process {max(0, math.floor(room)) >> 20:,} MiB (ulimit -v). Raise "
            "the limit; nothing recorded is lost."
        )


def take_buffers() -> None:
    """Have NumPy and SciPy take the memory that they compute in now, if memory has a limit.

    Raises:
        RunError: there is too little room for it.
    """
    global _has_buffers
    if _has_buffers or not is_limited():
        return
    if (room := _room()) < 2 * _BUFFER:
        raise RunError(
            f"Expected {2 * _BUFFER >> 20} MiB of memory beside the libraries, for NumPy and SciPy "
            f"to compute in, but a limit leaves this process {max(0, math.floor(room)) >> 20:,} "
            "MiB (ulimit -v). Raise the limit; nothing recorded is lost."
        )
    import numpy as np
    from scipy.linalg import blas

    with memory_errors():
        matrix = np.ones((_SIDE, _SIDE), order="F")
        np.matmul(matrix, matrix)
        blas.dgemm(1.0, matrix, matrix)
    _has_buffers = True


def is_limited() -> bool:
    """Return whether the memory of this process, and of those that it starts, has a limit."""
    return _room() < float("inf")


def _is_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", MemoryError))
    ):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if not isinstance(error, RuntimeError | ImportError | OSError):
        return False
    text = str(error).lower()
    if any(sign in text for sign in _SIGNS):
        return True
    if "failed to map segment" in text and is_limited():  # libraries of hundreds of megabytes
        return True
    return any(sign in text for sign in _AMBIGUOUS) and is_short()


def _room() -> float:
    """Return the bytes that this process may still take under limits of its own; infinite
    without.
    """
    if not sys.platform.startswith("linux"):
        return float("inf")
    room = float("inf")
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return room
    for kind, pages in ((resource.RLIMIT_AS, fields[0]), (resource.RLIMIT_DATA, fields[5])):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            room = min(room, limit - int(pages) * resource.getpagesize())
    return room
