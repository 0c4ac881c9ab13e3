"""Pairs of vectors that lie within a radius, tile by tile, and lists of them by row.

A matrix product gives the inner products of a tile, one comparison with a number tells which few
may be within the radius, and only of those the distances are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upslope.strategies.distances import BLOCK, slices

SLACK = 1e-5
"""Relative to squared lengths, more than rounding of an inner product and of a distance differ."""

AT_ONCE = 2**17
"""Pairs at a time: what is computed of them stays in a processor's cache."""


@dataclass(frozen=True)
class Pairs:
    """Some pairs of rows: `left` and `right`, (k,) positions each, and `squares`, (k,) distances
    squared."""

    left: Tensor
    right: Tensor
    squares: Tensor

    @staticmethod
    def join(parts: list[Pairs]) -> Pairs:
        """Return the pairs of all parts, and empty `parts`."""
        none = (*torch.empty(2, 0, dtype=torch.int32), torch.empty(0))
        columns = [none, *((part.left, part.right, part.squares) for part in parts)]
        parts.clear()  # so that memory does not hold two copies of all columns
        left, right, squares = (torch.cat(column) for column in zip(*columns, strict=True))
        return Pairs(left, right, squares)


def near_pairs(x: Tensor, y: Tensor | None, radius: float) -> Iterator[Pairs]:
    """Yield the pairs of a row of x and one of y with distances below `radius`, by tiles.

    x: (n, d), y: (m, d), in single precision; without y, of two rows of x, both orders of a pair
    and every row with itself. Positions are of type int32.
    """
    side = max(1, math.isqrt(BLOCK))
    other = x if y is None else y
    of_x, of_y = x.square().sum(dim=1), other.square().sum(dim=1)
    buffer = x.new_empty(min(side, len(x)) * min(side, len(other)))
    mask = torch.empty(len(buffer), dtype=torch.bool)
    for rows in slices(len(x), side):
        for columns in slices(len(other), side, rows.start if y is None else 0):
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            size = shape[0] * shape[1]
            products = torch.mm(x[rows], other[columns].T, out=buffer[:size].view(shape)).view(-1)
            lengths = of_x[rows].min() + of_y[columns].min()
            slack = SLACK * float(of_x[rows].max() + of_y[columns].max())
            torch.gt(products, (float(lengths) - radius**2) / 2 - slack, out=mask[:size])
            places = torch.from_numpy(np.flatnonzero(mask[:size].numpy()))
            for part in torch.split(places, AT_ONCE) if len(places) else ():
                i, j = part // shape[1], part % shape[1]
                squares = of_x[rows][i].add_(of_y[columns][j]).sub_(products[part], alpha=2)
                is_near = squares < radius**2
                left = (i[is_near] + rows.start).int()
                right = (j[is_near] + columns.start).int()
                yield Pairs(left, right, squares[is_near].clamp_(min=0))
                if y is None and rows != columns:
                    yield Pairs(right, left, squares[is_near].clamp_(min=0))


class Lists:
    """For each row the positions that are paired with it.

    pairs: `left` are rows, `right` what they are paired with. count: of rows.
    """

    def __init__(self, pairs: Pairs, count: int) -> None:
        self.counts = torch.bincount(pairs.left, minlength=count)
        self.starts = self.counts.cumsum(dim=0) - self.counts
        self.positions = pairs.right[pairs.left.argsort()]

    def of(self, rows: Tensor) -> Tensor:
        """Return the lists of some rows behind each other. rows: (k,)."""
        return self.positions[list_places(self.starts[rows], self.counts[rows])[1]].long()


def list_places(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the entries of lists that lie in one tensor, and whose each is.

    starts: (k,) where each list begins. counts: (k,) its length. Returns the number of the list,
    and the place, of each entry.
    """
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    before = counts.cumsum(dim=0) - counts
    return owner, torch.arange(len(owner)) + (starts - before)[owner]
