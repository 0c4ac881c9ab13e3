"""Per-sample gradients of tables of which each sample looks up a few rows: embeddings.

Called by `kernels/embedding`, and by `tied_gradients` where the table is a matrix as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import chunks
from upslope.gradnorm.core.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.core.sums_of_squares import as_type_of, squared_norms, upcast


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

    def _compact(self, c: slice) -> Tensor:
        """(c, t, e): the sums of the rows of equal index, and zeros."""
        ids, g = self.ids[c], upcast(self.g[c])
        n, t, e = g.shape
        sorted_ids, order = ids.sort(dim=1)
        place = torch.zeros_like(ids)  # the rows of sample k lie from k * t on
        place[:, 1:] = (sorted_ids[:, 1:] != sorted_ids[:, :-1]).cumsum(dim=1)
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
        same = [self, *(other for other in others if isinstance(other, LookupGradient))]
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

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return "rows", float(min(self.g.shape[1], self.g.shape[2]) * self.g[0].numel())
