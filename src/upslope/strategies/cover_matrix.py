"""Coverage of a small pool: the similarities of all pairs are held (see `cover`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from upslope.strategies.distances import BLOCK, symmetric_tiles


class MatrixCover:
    """Coverage with the similarity of every candidate to every other one.

    x: (n, d) candidates. to_labels: (n,) their similarities to the most similar label, written by
    `take`. w: (n,) weights. similarity: from squared distances, elementwise.
    """

    def __init__(
        self, x: Tensor, to_labels: Tensor, w: Tensor, similarity: Callable[[Tensor], Tensor]
    ) -> None:
        self.covered, self.w = to_labels, w
        self._is_plain = bool((w == 1).all())
        self.similarities = x.new_empty(len(x), len(x))
        for rows, columns, squares in symmetric_tiles(x):
            tile = similarity(squares)
            self.similarities[rows, columns] = tile
            if rows != columns:
                self.similarities[columns, rows] = tile.T

    def gains_of(self, rows: Tensor) -> Tensor:
        """Return the gains of some candidates now: (len(rows),), in double precision."""
        new_gains = self.similarities[rows].sub_(self.covered).clamp_(min=0)
        # A sum, not a product: rows that are equal add up in the same order.
        return (new_gains if self._is_plain else new_gains.mul_(self.w)).sum(dim=1).double()

    def gains(self) -> Tensor:
        """Return the gain of every candidate: (n,), in double precision."""
        rows = torch.arange(len(self.w))
        parts = torch.split(rows, max(1, BLOCK // len(self.w)))
        return torch.cat([self.gains_of(part) for part in parts])

    def take(self, row: int) -> None:
        """Count a candidate as labelled."""
        torch.maximum(self.covered, self.similarities[row], out=self.covered)
