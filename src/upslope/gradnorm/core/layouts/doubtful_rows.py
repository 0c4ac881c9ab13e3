"""Rows of which gradients have not shown that they belong to the sample that a layout says.

A layout that explains every gradient of a batch may be wrong where none has come. Put the class
tokens of n samples in front of their patches, all in one row:

    row j < n: sample j          after these: sample (j - n) // t

As long as no gradient reaches the patches, a layout of the whole explains it: sample j % n. So
where rows were not reached it is tried whether a head and a tail, each with a layout of its own,
and a middle that nobody has seen explain the same. What they would say otherwise is doubtful. Asked
by `layout_probe`; whether a later gradient reaches a doubtful row is asked by `reducing_listener`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.gradnorm.core.layouts.layout import Layout

_MOST = 1 << 13
"""Rows of a sample up to which parts are tried: of more, all that was not reached is doubtful."""

_FEW = 64
"""Rows that are looked at first: they refute nearly every layout."""

_Array = np.ndarray[Any, Any]


def doubtful_rows(layout: Layout, has_gradient: Tensor, n: int) -> Tensor | None:
    """Return which entries along the dimension of the samples are doubtful; None where none is.

    layout: explains what was reached. has_gradient: (size,) bool, whether a gradient has reached
    an entry. n: the samples. The result, (size,) bool, is not to be written to.
    """
    if len(has_gradient) < 2 * n or bool(has_gradient.all()):
        return None
    if len(has_gradient) > n * _MOST or not bool(has_gradient.any()):
        return ~has_gradient
    return _doubtful_rows(layout, has_gradient.cpu().numpy().tobytes(), n)


@functools.lru_cache(64)  # most uses of a model are reached alike
def _doubtful_rows(layout: Layout, gradients: bytes, n: int) -> Tensor | None:
    rows = np.frombuffer(gradients, dtype=bool).nonzero()[0]
    size, most = len(gradients), len(gradients) // n
    every, owners = np.arange(size), layout.owners(size, n).numpy()
    # Part -> for each b, what a layout of blocks of b says; counted from the front and the back.
    heads = [_first_wrong(rows, owners, b, n, 0) // n for b in range(1, most + 1)]
    tails = [_first_wrong(rows[::-1], owners, b, n, size) for b in range(1, most + 1)]
    tails = [most if at < 0 else (size - 1 - at) // n for at in tails]
    # How many rows of each sample the head may have, and the tail.
    is_head, is_tail = (_multiples(limits, most) for limits in (heads, tails))
    starts = is_tail[::-1].nonzero()[0]  # of the tail
    # A head ends where the tail starts, or before what was not reached.
    ends = np.append(rows, size)[np.searchsorted(rows, n * np.arange(most + 1))] // n
    place = np.searchsorted(starts, ends, side="right") - 1
    far = np.where(place < 0, -1, starts[place])
    is_head &= far >= np.arange(most + 1)
    is_start = np.zeros(most + 1, dtype=bool)
    is_doubtful = np.zeros(size, dtype=bool)
    for head in is_head.nonzero()[0]:
        is_doubtful[n * head : n * far[head]] = True
        is_start[head : ends[head] + 1] = True
    is_start &= is_tail[::-1]
    for b in range(1, most + 1):
        # What nobody has seen of a part is marked above.
        fitting = [t for t in range(b, heads[b - 1] + 1, b) if is_head[t]]
        if fitting and n * fitting[-1] > rows[0]:
            end = n * fitting[-1]
            is_doubtful[:end] |= every[:end] // b % n != owners[:end]
        fitting = [t for t in range(b, tails[b - 1] + 1, b) if is_start[most - t]]
        if fitting and size - n * fitting[-1] <= rows[-1]:
            start = size - n * fitting[-1]
            is_doubtful[start:] |= (every[start:] - size) // b % n != owners[start:]
    return torch.from_numpy(is_doubtful) if is_doubtful.any() else None


def _first_wrong(rows: _Array, owners: _Array, b: int, n: int, origin: int) -> int:
    """Return the first of some rows that blocks of b rows give to another sample than its own.

    Or another such row, where no part could end before it; the size, or -1 for the other origin,
    where there is none. origin: where blocks are counted from, the beginning or the end.
    """
    here_and_there = rows[:: len(rows) // _FEW + 1]
    for some in (rows[:_FEW], here_and_there, rows):
        is_wrong = (some - origin) // b % n != owners[some]
        if is_wrong.any():
            row = int(some[is_wrong.argmax()])
            # A part has b rows of each sample at least: where it ends before, no matter where.
            if some is not here_and_there or abs(row - origin) < n * b:
                return row
    return -1 if origin else len(owners)


def _multiples(limits: list[int], most: int) -> _Array:
    """Return which numbers up to `most` are multiples of some b, up to the limit of that b."""
    is_multiple = np.zeros(most + 1, dtype=bool)
    is_multiple[0] = True
    for b, limit in enumerate(limits, start=1):
        is_multiple[b : limit + 1 : b] = True
    return is_multiple
