"""The C library's heap: pages that it keeps for the next batch, or gives back at once.

Called by `trace/microbatches` for each batch. Numbers do not depend on it; time and memory do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator

import torch

# The numbers that glibc's malloc.h gives its options.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BOUND = 32 << 20
"""The largest block from which glibc learns that blocks come and go."""
_OWN_PAGES = 1 << 20
"""Bytes from which a block has pages of its own where memory is bounded."""

_gives_back = False
"""Whether blocks have pages of their own just now."""


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the C library, where it may be glibc."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


@functools.cache
def keep_pages() -> None:
    """Let the C library keep what a piece of a batch has freed for the next piece.

    It gives freed pages back to the system, which must clear them anew, beyond twice the size of
    the largest block that it has seen come and go; and learns from blocks of up to 32 MiB. This one
    is never touched.
    """
    torch.empty(_BOUND - (64 << 10), dtype=torch.uint8)


def drop_free_pages() -> None:
    """Give all pages that the C library keeps free back to the system, once.

    Behind a pass that is seldom, whose holes the tensors of the next one would not find.
    """
    trim = getattr(_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def give_pages_back() -> Iterator[None]:
    """Give each block of a megabyte or more pages of its own, that go when it goes.

    A heap that keeps its pages has holes that the next tensor does not fit: up to twice what is
    alive. It costs time, since the system clears each page, in all threads of the process while it
    lasts. C libraries other than glibc have no such switch.
    """
    global _gives_back
    switch = getattr(_library(), "mallopt", None)
    if switch is None or _gives_back:
        yield
        return
    switch(_MMAP_THRESHOLD, _OWN_PAGES)
    _gives_back = True
    try:
        yield
    finally:
        _gives_back = False
        # What it has learnt in `keep_pages`, which a switch once touched no longer does.
        switch(_MMAP_THRESHOLD, _BOUND)
        switch(_TRIM_THRESHOLD, 2 * _BOUND)
