"""Per-sample gradients of tables of which each sample looks up a few rows: embeddings.

Where all look-ups of a sample have one gradient g in common, as in a sum of rows, no row is formed:

    ||G||^2 = ||g||^2 sum_v c_v^2        (c_v: how often the sample looks row v up)

Called by `kernels/embedding`, and by `tied_gradients` where the table is a matrix as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import chunks
from upslope.gradnorm.core.gradients.per_sample_gradients import OuterPieces, PerSampleGradient
from upslope.gradnorm.core.gradients.sums_of_squares import (
    SumOfSquares,
    as_type_of,
    squared_norms,
    upcast,
)

_PLACE = 8
"""Bytes of the place of an entry in what it is added to."""


@dataclass(frozen=True)
class LookupGradient(PerSampleGradient):
    """G_n, of shape (count, e), has g_ns added to its row ids_ns. ids: (n, t), g: (n, t, e)."""

    ids: Tensor
    g: Tensor
    count: int

    def __len__(self) -> int:
        return len(self.g)

    def squared_norms(self, scratch: int) -> Tensor:
        """See `PerSampleGradient`. The t rows that a sample has stand for the table of `count`."""
        _, t, e = self.g.shape
        if t == 1:
            return squared_norms(self.g)
        pieces = chunks(len(self), 2 * t * e * self.g.element_size(), scratch)
        return torch.cat([squared_norms(self._compact(c)) for c in pieces])

    def add_squares(self, total: SumOfSquares, scratch: int) -> None:
        """Add the squared norms to a sum; see `PerSampleGradient`."""
        if self.g.shape[1] == 1:
            total.add_rows(self.g)
        else:
            total.add_squares(self.squared_norms(scratch))

    def _compact(self, c: slice) -> Tensor:
        """(c, t, e): the sums of the rows of equal index, and zeros."""
        ids, g = self.ids[c], upcast(self.g[c])
        n, t, e = g.shape
        sorted_ids, order = ids.sort(dim=1)
        is_another = sorted_ids[:, 1:] != sorted_ids[:, :-1]
        if bool(is_another.all()):  # as of positions, or of a few words each
            return g
        place = torch.zeros_like(ids)  # the rows of sample k lie from k * t on
        place[:, 1:] = is_another.cumsum(dim=1)
        place += t * torch.arange(n, device=ids.device)[:, None]
        place = torch.empty_like(ids).scatter_(1, order, place)
        return g.new_zeros(n * t, e).index_add_(0, place.flatten(), g.flatten(0, 1)).view(n, t, e)

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        ids, g = self.ids[rows], self.g[rows]
        out = g.new_zeros(len(g), self.count, g.shape[2])
        return out.scatter_add_(1, ids[:, :, None].expand_as(g), g)

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """Return the sum with other gradients; see `PerSampleGradient`."""
        same = [self, *lookups_in(others)]
        if len(same) <= len(others):
            return None
        ids, g = torch.cat([p.ids for p in same], dim=1), torch.cat([p.g for p in same], dim=1)
        return LookupGradient(ids, g, self.count)

    def inner_products(self, v: Tensor) -> Tensor | None:
        """Return the inner products with a direction; see `PerSampleGradient`."""
        return (v[self.ids] * self.g).flatten(1).sum(dim=1)

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Return the inner products with left (x) right; see `PerSampleGradient`."""
        return (left[self.ids] * (as_type_of(right, self.g) @ right)).sum(dim=1)

    def outer_products(self, scratch: int, most: float) -> Iterator[OuterPieces]:  # noqa: ARG002
        """Yield the rows that are looked up; see `PerSampleGradient`. They may be any number."""
        bytes_each = (self.g.element_size() + _PLACE) * self.g.shape[1:].numel()
        for c in chunks(len(self), bytes_each, scratch):
            yield OuterPieces([self.g[c]], self.ids[c])

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return "rows", float(min(self.g.shape[1], self.g.shape[2]) * self.g[0].numel())


@dataclass(frozen=True)
class BagGradient(PerSampleGradient):
    """G_n, of shape (count, e), has g_n added to its rows ids_i, for all look-ups i of sample n.

    ids: (t,), the look-ups of one sample behind those of another. sizes: (n,), how many each has.
    factors: (t,), by what g is multiplied for each; None for ones. g: (n, e).
    """

    ids: Tensor
    sizes: Tensor
    factors: Tensor | None
    g: Tensor
    count: int

    def __len__(self) -> int:
        return len(self.g)

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`. No row of the table is formed."""
        squares = squared_norms(self.g)
        owners, sums = self._sums_of_factors()
        of_rows = squares.new_zeros(len(self))
        of_rows.index_add_(0, owners, sums.to(squares.dtype).square())
        # Who looks nothing up has no gradient, be that of its output infinite.
        return torch.where(self.sizes > 0, squares * of_rows, 0)

    def _sums_of_factors(self) -> tuple[Tensor, Tensor]:
        """Return the sum of factors of each row that a sample looks up, and that sample, (k,)."""
        # One number for a row and its sample.
        keys = torch.add(self.ids, torch.repeat_interleave(self.sizes), alpha=self.count)
        if self.factors is None:
            rows, sums = torch.unique_consecutive(_sort(keys), return_counts=True)
        else:
            rows, place = torch.unique(keys, return_inverse=True)
            factors = upcast(self.factors)
            sums = factors.new_zeros(len(rows)).index_add_(0, place, factors)
        return rows.div(self.count, rounding_mode="floor"), sums

    def lookups(self) -> LookupGradient:
        """Return the gradients with a row for each look-up.

        Samples with fewer look-ups than others have zeros behind their own.
        """
        owners, n = torch.repeat_interleave(self.sizes), len(self)
        first = self.sizes.cumsum(dim=0) - self.sizes
        place = owners, torch.arange(len(owners), device=owners.device) - first[owners]
        rows = self.g[owners]
        if self.factors is not None:
            rows = rows * self.factors[:, None]
        most = int(self.sizes.max())
        ids, g = self.ids.new_zeros(n, most), rows.new_zeros(n, most, rows.shape[1])
        ids[place], g[place] = self.ids, rows
        return LookupGradient(ids, g, self.count)

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.lookups().materialize(rows)

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """Return the sum with other gradients; see `PerSampleGradient`."""
        return self.lookups().add(others)

    def inner_products(self, v: Tensor) -> Tensor | None:
        """Return the inner products with a direction; see `PerSampleGradient`."""
        return self.lookups().inner_products(v)

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Return the inner products with left (x) right; see `PerSampleGradient`."""
        return self.lookups().rank_one_products(left, right)

    def outer_products(self, scratch: int, most: float) -> Iterator[OuterPieces]:
        """Yield the rows that are looked up; see `PerSampleGradient`."""
        return self.lookups().outer_products(scratch, most)

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return "counts", self.g.shape[1] + len(self.ids) / len(self)


def lookups_in(parts: Sequence[PerSampleGradient]) -> list[LookupGradient]:
    """Return those of some gradients that are sums of rows of a table, as such."""
    every = (part.lookups() if isinstance(part, BagGradient) else part for part in parts)
    return [part for part in every if isinstance(part, LookupGradient)]


def _sort(keys: Tensor) -> Tensor:
    """Return whole numbers, (t,), in ascending order."""
    # NumPy sorts them by vector instructions, without their places: four times as fast.
    if keys.device.type == "cpu":
        return torch.from_numpy(np.sort(keys.numpy()))
    return keys.sort().values
