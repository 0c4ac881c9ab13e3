"""How many samples go at a time: as many as a bound of memory, or a cache, has room for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

SCRATCH = 64 << 20
"""Bytes of scratch that a chunk may take, where the caller sets no bound."""

CACHE = 8 << 20
"""Bytes of scratch that a chunk does take, where more gains nothing: caches are small."""


def chunks(n: int, bytes_each: int, scratch: int) -> Iterator[slice]:
    """Slices of range(n) whose scratch stays within the bound, at least one sample each."""
    size = max(1, min(n, min(scratch, CACHE) // max(bytes_each, 1)))
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def evenly(n: int, most: int) -> Iterator[slice]:
    """Slices of range(n), equal but for one, of about `most` at most; none of a single sample.

    Some models squeeze a single sample, and some of torch's operators are slow with one.
    """
    count = max(1, min(-(-n // most), n // 2))
    bounds = [n * i // count for i in range(count + 1)]
    yield from itertools.starmap(slice, itertools.pairwise(bounds))
