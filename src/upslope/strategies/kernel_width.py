"""The smallest distance between rows that differ: the width of UHerding's kernel.

Tiles of distances come from inner products, whose rounding is of the order of the smallest
distances that count: in single precision the squared distance of a vector of unit length to itself
comes out as 10^-6 and more, and as something else on another processor. So no row is compared with
itself or its copies, and what may be the smallest is computed again from differences, in double
precision.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upslope.strategies.distances import BLOCK, slices, symmetric_tiles

SAME = 1e-6
"""Squared distance below which rows of unit length are one sample: a network may return as much for
an image in another batch."""
_NEAR = 1e-3
"""Squared distances of which the rounding of inner products is more than a thousandth."""
_SLACK = 1e-5
"""More than that rounding, in thousands of dimensions."""


def smallest_distance(x: Tensor) -> float:
    """Return the smallest distance between two rows that differ; 1 where no two do.

    x: (n, d) float32, of length 1 or 0. Rows within 10^-3 of each other count as equal.
    """
    x = _without_copies(x)
    smallest = torch.inf
    for rows, columns, squares in symmetric_tiles(x):
        if rows == columns:
            squares.fill_diagonal_(torch.inf)
        near = squares < _NEAR
        exact = _squares_of(x[rows], x[columns], near.nonzero())
        smallest = min(smallest, _least(exact[exact >= SAME]))
        squares.masked_fill_(near, torch.inf)
        # The smallest is at most the first bound, and comes out at most a rounding above it.
        bound = min(smallest, float(squares.min()) + _SLACK) + _SLACK
        smallest = min(
            smallest, _least(_squares_of(x[rows], x[columns], (squares < bound).nonzero()))
        )
    return smallest**0.5 if smallest < torch.inf else 1.0


def _without_copies(x: Tensor) -> Tensor:
    """The rows that differ by any bit, each once. x: (n, d), returns (k, d)."""
    if not x.numel():
        return x
    rows = np.ascontiguousarray(x.numpy())
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    return x[torch.from_numpy(np.sort(np.unique(as_bytes, return_index=True)[1]))]


def _squares_of(x: Tensor, y: Tensor, pairs: Tensor) -> Tensor:
    """(k,) float64: squared distances from differences. x, y: (n, d), (m, d). pairs: (k, 2)."""
    squares = [pairs.new_empty(0, dtype=torch.float64)]
    for part in slices(len(pairs), max(1, BLOCK // max(1, x.shape[1]))):
        i, j = pairs[part].T
        differences = x[i].double() - y[j].double()
        squares.append(differences.square_().sum(dim=1))
    return torch.cat(squares)


def _least(values: Tensor) -> float:
    return float(values.min()) if len(values) else torch.inf
