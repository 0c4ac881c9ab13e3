"""Bounds on how much a candidate lowers BAIT's trace, so that few gains need to be computed.

With the symbols of `fisher`, and Q and R as they were when they were computed, the gain of a
candidate after more steps W_1, ..., W_t is at most

    mu tr( (1 + Q)^-1 Q ),    mu the largest eigenvalue of M^-1 F now (`fisher_ratio`),
    ( sqrt(tr R) + s sqrt(tr Q) )^2,    s^2 the largest eigenvalue of all blocks W_i^T F W_j:

tr(R) is |F^1/2 M^-1 V|^2, the steps take W (W^T V) off M^-1 V, and |W^T V|^2 <= tr Q. Before Q is
computed, tr( (1 + Q)^-1 Q ) <= t / (1 + t / (C - 1)) with t >= tr Q. Bounds come in four degrees,
each closer, and dearer, than the one before:

    first    t = (1 - sum_i p_i^2) h^T (sum_i Y_ii) h                          one form a candidate
    second   t = sum_(i < j) p_i p_j (a_i + a_j)^2,   a_i^2 = h^T Y_ii h       C forms
    third    tr( (1 + Q)^-1 Q ) itself, by Q                                   C^2 forms
    fourth   Q and R                                                           C^2 forms more

with the blocks Y_ii = (M^-1)_ii of the classes. A candidate goes on to the next degree where its
bound is not below the best gain. That a gain can rise as others are taken is why bounds are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.strategies.fisher import TOGETHER, Fisher, Step
from upslope.strategies.information import basis
from upslope.strategies.symmetric import forms

ROUNDING = 1e-6
"""Relative room for rounding in bounds."""
TIE = 1e-9
"""Gains that differ by less, relative to them, differ by rounding: the smaller position is taken.
Of samples that are alike, gains are computed at different times."""
EARLIEST = 4
"""Choices after which the largest eigenvalue is looked for again, then after `RARER` times as many:
it falls ever more slowly."""
RARER = 3
AHEAD = 0.85
"""Where a candidate must go on a degree, all go along whose bound is above this times the gain."""


class LazyGains:
    """The candidate of largest gain, over and over. p: (n, C) posteriors."""

    def __init__(self, fisher: Fisher, p: Tensor) -> None:
        self.fisher, self.p = fisher, p
        n, c = fisher.a.shape[:2]
        unsure = 1 - p.square().sum(dim=1)
        self.shares = (unsure * _forms_of_trace(fisher.inverse, c, fisher.h)).clamp(min=0)
        """Bounds on tr Q, (n,)."""
        self.reach = self._reach(self.shares)
        """Bounds on tr( (1 + Q)^-1 Q ), (n,)."""
        self.spreads = torch.full((n,), torch.inf, dtype=p.dtype)
        """tr R of the fourth degree, (n,)."""
        self.ratio, self.count, self._next_ratio = torch.inf, 0, 0
        self.degree = torch.ones(n, dtype=torch.int64)
        self.since = torch.zeros(n, dtype=torch.int64)
        """Steps that the bound of each candidate knows of."""
        self.gains = torch.full((n,), -torch.inf, dtype=p.dtype)
        self.free = torch.ones(n, dtype=torch.bool)
        # s^2 of the steps from each one on, and last that of none.
        self.drifts = torch.zeros(1, dtype=p.dtype)
        self.taken: list[int] = []
        self.overlaps = torch.zeros(0, 0, dtype=p.dtype)
        self._blocks: Tensor | None = None

    def most_new(self, at_least: float) -> float:
        """Return the largest tr Q of a candidate before any is taken, 0 if below `at_least`."""
        rows = (self.shares > at_least).nonzero().flatten()
        return float(self.fisher.shares(rows)[0].max()) if len(rows) else 0.0

    def take(self) -> int:
        """Take the free candidate of largest gain: M has its information from here on."""
        if self.count == self._next_ratio:
            self.ratio = min(self.ratio, self.fisher.ratio())
            self._next_ratio = RARER * self.count or EARLIEST
        self.count += 1
        best = self._best()
        self.free[best] = False
        self.gains[best] = -torch.inf
        likely = self.gains.topk(min(TOGETHER, len(self.gains))).indices.tolist()
        if self.fisher.steps == self.fisher.most_steps:
            self._fold()
        self.taken.append(best)
        self._drift(self.fisher.add(best, likely))
        return best

    def _best(self) -> int:
        while True:
            is_now = (self.degree == 4) & (self.since == self.fisher.steps)
            bounds = self.spreads.sqrt() + (self.drifts[self.since] * self.shares).sqrt()
            bounds = torch.minimum(bounds.square(), self.ratio * self.reach) * (1 + ROUNDING)
            bounds = torch.where(is_now, self.gains, bounds).masked_fill(~self.free, -torch.inf)
            gains = self.gains.masked_fill(~(is_now & self.free), -torch.inf)
            best_gain = float(gains.max())
            level = best_gain - TIE * abs(best_gain) if best_gain > -torch.inf else best_gain
            stale = ~is_now & self.free
            # Before any gain is known, the highest bounds tell where to begin.
            must = stale & (
                bounds >= max(level, float(bounds.max()) / 2 if best_gain < 0 else level)
            )
            if not bool(must.any()):
                largest = (gains >= level).nonzero().flatten().tolist()
                if not largest:
                    raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
                        "the gains are not numbers"
                    )
                return int(largest[0])
            lowest = int(self.degree[must].min())
            ahead = stale & (self.degree == lowest)
            ahead &= (bounds >= AHEAD * best_gain) | must if best_gain > 0 and lowest < 4 else must
            self._refine(ahead.nonzero().flatten(), lowest)

    def _refine(self, rows: Tensor, degree: int) -> None:
        if degree == 1:
            self._second(rows)
            return
        if degree == 2:
            self.shares[rows], self.reach[rows] = self.fisher.shares(rows)
            self.degree[rows] = 3
            return
        self.fisher.settle(rows)
        self.spreads[rows] = self.fisher.r[rows].diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=0)
        self.shares[rows] = self.fisher.q[rows].diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=0)
        self.gains[rows], self.reach[rows] = self.fisher.gains_and_shares(rows)
        self.degree[rows] = 4
        self.since[rows] = self.fisher.steps

    def _second(self, rows: Tensor) -> None:
        p, h = self.p[rows], self.fisher.h[rows]
        if self._blocks is None:
            self._blocks = _class_blocks(self.fisher.inverse, p.shape[1])
        lengths = torch.stack([forms(block, h) for block in self._blocks], dim=1)
        lengths = lengths.clamp(min=0).sqrt()
        # The sum over pairs, by sums over classes.
        first, second = p * lengths.square(), p * lengths
        pairs = first.sum(dim=1) - (p * first).sum(dim=1)
        pairs += second.sum(dim=1).square() - second.square().sum(dim=1)
        self.shares[rows] = torch.minimum(self.shares[rows], pairs.clamp(min=0))
        self.reach[rows] = self._reach(self.shares[rows])
        self.degree[rows] = 2

    def _reach(self, shares: Tensor) -> Tensor:
        return shares / (1 + shares / self.fisher.a.shape[1])

    def _drift(self, step: Step) -> None:
        """Take a step into s^2. With U_i the samples taken, in the order of the steps,

            W_i^T F W = ( root_i^-1 U_i^T + sum_(k > i) (W_i^T U_k) U_k^T ) X U root

        over the steps k before this one, as that bracket is W_i^T M, and F M^-1 U = M X U."""
        c, steps = len(step.root), len(self.taken)
        if len(self.overlaps) < steps * c:  # twice as many as before
            larger = self.overlaps.new_zeros(
                max(2 * len(self.overlaps), TOGETHER * c), len(self.overlaps)
            )
            larger[: len(self.overlaps)] = self.overlaps
            self.overlaps = torch.cat(
                [larger, larger.new_zeros(len(larger), len(larger) - larger.shape[1])], 1
            )
        place = slice((steps - 1) * c, steps * c)
        self.overlaps[: place.start, place] = step.overlaps.T
        self.overlaps[place, place] = torch.linalg.inv(step.root)
        h, a = self.fisher.h[self.taken], self.fisher.a[self.taken]
        samples = torch.einsum("skm,ksn->smn", a, h @ step.spread).flatten(0, 1)  # U_k^T X U
        last_block = step.root.T @ samples[place] @ step.root
        largest = float(torch.linalg.eigvalsh((last_block + last_block.T) / 2)[-1])
        blocks = self.overlaps[: place.start, : place.start] @ samples[: place.start] @ step.root
        beside = blocks.view(-1, c * c).square().sum(dim=1).flip(0).cumsum(dim=0).flip(0)
        beside = torch.cat([beside, beside.new_zeros(1)])
        middle, half = (self.drifts + largest) / 2, (self.drifts - largest) / 2
        drifts = middle + (half.square() + beside).sqrt()
        self.drifts = torch.cat([drifts, drifts.new_zeros(1)])

    def _fold(self) -> None:
        drifts = self.drifts[self.since]
        self.spreads = (self.spreads.sqrt() + (drifts * self.shares).sqrt()).square()
        self.fisher.fold()
        self.since.zero_()
        self.taken.clear()
        self.overlaps = self.overlaps.new_zeros(0, 0)
        self._blocks = None
        self.drifts = self.drifts.new_zeros(1)


def _forms_of_trace(matrix: Tensor, c: int, h: Tensor) -> Tensor:
    """h^T (sum of the diagonal blocks of a matrix) h of every row: (n,)."""
    d = h.shape[1]
    blocks = matrix.view(c, d, c, d)
    return forms(sum((blocks[i, :, i] for i in range(c)), blocks.new_zeros(d, d)), h)


def _class_blocks(matrix: Tensor, classes: int) -> Tensor:
    """The diagonal blocks, by classes, of a matrix in the basis B: (C, d, d)."""
    b = basis(classes)
    c = b.shape[1]
    d = len(matrix) // c
    half = (b @ matrix.view(c, -1)).view(classes, d, c, d)
    return torch.stack([(half[i] * b[i, :, None]).sum(dim=1) for i in range(classes)])
