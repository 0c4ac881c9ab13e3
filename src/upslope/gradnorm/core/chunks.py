"""How many samples go at a time: as many as a bound of memory, or a cache, has room for.

A processor reads what it has just written from a cache, which is small, and a call costs it
little. A GPU has no such cache, and a call for a few samples leaves most of it idle: there a chunk
takes all the scratch that it may.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

SCRATCH = 64 << 20
"""Bytes of scratch that a chunk may take on a processor, where the caller sets no bound."""

DEVICE_SCRATCH = 256 << 20
"""The same on a GPU. Set by hand: a network whose batch fits one leaves twice as much free."""

CACHE = 8 << 20
"""Bytes of scratch that a chunk does take on a processor, where more gains nothing."""


def has_caches(tensor: Tensor) -> bool:
    """Whether a tensor is on a processor, whose caches a chunk should not leave."""
    return tensor.is_cpu


def in_cache(limit: int, scratch: int) -> int:
    """Return the bytes that a chunk takes.

    limit: those that stay in a cache. scratch: those that it may take; more than `SCRATCH` where
    there are no caches to stay in.
    """
    return min(limit, scratch) if scratch <= SCRATCH else scratch


def chunks(n: int, bytes_each: int, scratch: int) -> Iterator[slice]:
    """Slices of range(n) whose scratch stays within the bound, at least one sample each."""
    size = max(1, min(n, in_cache(CACHE, scratch) // max(bytes_each, 1)))
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def join(pieces: Iterator[Tensor], n: int) -> Tensor:
    """Return pieces (m, ...) as one tensor (n, ...), in the first one's order of memory.

    Each is written to its place as it comes: those that are all there before they are joined would
    take as much memory once more.
    """
    first = next(pieces)
    if len(first) == n:
        return first
    by_stride = sorted(range(1, first.dim()), key=first.stride, reverse=True)
    dims = (0, *by_stride)
    whole = first.new_empty(n, *(first.shape[d] for d in by_stride)).permute(
        [dims.index(d) for d in range(first.dim())]
    )
    start = 0
    for piece in itertools.chain([first], pieces):
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole


def evenly(n: int, most: int) -> Iterator[slice]:
    """Slices of range(n), equal but for one, of about `most` at most; none of a single sample.

    Some models squeeze a single sample, and some of torch's operators are slow with one.
    """
    count = max(1, min(-(-n // most), n // 2))
    bounds = [n * i // count for i in range(count + 1)]
    yield from itertools.starmap(slice, itertools.pairwise(bounds))
