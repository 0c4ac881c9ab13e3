"""The Fisher information of a last layer, and what is left of it: BAIT's traces (see there).

No I(x) says anything of weights that add the same to all classes, S_x 1 = 0. There F is 0 while
rounding of it, over the ridge, would be all that is seen; so everything is written in a basis B of
what is orthogonal to 1, (C - 1) d numbers, and no trace changes.

I(x) has low rank: I(x) = V V^T with V = A (x) h, ((C - 1) d, C - 1), and A A^T = B^T S_x B. By
Woodbury

    tr( (M +- V V^T)^-1 F ) = tr( M^-1 F ) -+ tr( (1 +- Q)^-1 R ),
    Q = V^T M^-1 V,   R = V^T X V,   X = M^-1 F M^-1,

C - 1 squared each. A step changes M by +- U U^T, the information of the sample taken:

    M^-1' = M^-1 -+ W W^T,           W = M^-1 U (1 +- U^T M^-1 U)^-1/2,
    X' = X - W H^T - H W^T,          H = +- X U (1 +- U^T M^-1 U)^-1/2 - W W^T F W / 2.

M^-1 and X are computed once. W and H of every step are held, and a candidate's Q and R are brought
up to date when they are asked for:

    Q' = Q -+ G G^T,   R' = R - G (V^T H)^T - (V^T H) G^T,   G = V^T W.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from upslope.strategies.fisher_ratio import largest_ratio
from upslope.strategies.information import roots
from upslope.strategies.symmetric import ROWS, forms, inverses, symmetric_product, times

SINGULAR = 1e-10
TOGETHER = 64
"""Samples whose products with M^-1 and X are computed together: each matrix is read once."""


FEW = 4
"""Samples, at the least, whose products are computed together."""
WORTH = 2
"""How many more are computed together for each of the last ones that was taken."""


@dataclass(frozen=True)
class Step:
    """What a step was made of, with M as it was before it.

    root: (1 +- U^T M^-1 U)^-1/2, (c, c) with c = C - 1, so that W = M^-1 U root. overlaps: U^T W of
    steps before, (c, steps c). spread: X U, (c, d, c).
    """

    root: Tensor
    overlaps: Tensor
    spread: Tensor


class Fisher:
    """tr(M^-1 F), and what it would be with a sample more or less.

    p: (n, C) posteriors and h: (n, d) features of the candidates; pool: F; labelled: that of the
    labelled samples, which with the ridge is M at first.
    """

    def __init__(self, p: Tensor, h: Tensor, pool: Tensor, labelled: Tensor, ridge: float) -> None:
        self.pool = pool
        self._rng = torch.Generator().manual_seed(0)
        noise = torch.randn(len(pool), generator=self._rng, dtype=h.dtype)
        self._ridge = None if bool(labelled.any()) else ridge
        """Where M is the ridge alone, so that M^-1 need not be multiplied."""
        self.inverse, self.spread, self._draw = inverses(labelled, ridge, pool, noise)
        self.first_trace = float((self.inverse * pool).sum())
        self.change_of_trace = 0.0
        self.steps = 0
        c = max(1, p.shape[1] - 1)
        self._w = self._h = torch.empty(0, c, h.shape[1], dtype=h.dtype)  # (steps c, c, d)
        self._signs: list[float] = []
        self._products: dict[int, tuple[int, Tensor, Tensor]] = {}
        self._ahead = 0
        """How many `_products` were computed together."""
        self.follow(p, h)

    def follow(self, p: Tensor, h: Tensor) -> None:
        """Follow these candidates from here on, and no others; M and F stay. p, h: as at first."""
        if self.steps:
            self.fold()
        self._products.clear()
        self.h, self.a = h, roots(p)
        n, c = self.a.shape[:2]
        self.q, self.r = torch.zeros(2, n, c, c, dtype=h.dtype)
        self.epoch = torch.full((n,), -1)
        """Steps that Q and R of each candidate know of; -1 where they were never computed."""
        self._has_q = torch.zeros(n, dtype=torch.bool)
        """Where Q before any step is there, whether or not R is."""

    @property
    def most_steps(self) -> int:
        """Steps whose W and H take as much memory as M^-1 and X; `fold` them then."""
        return max(TOGETHER, self.h.shape[1])

    def settle(self, rows: Tensor) -> None:
        """Bring Q and R of candidates up to date. rows: (k,) distinct positions."""
        new = rows[self.epoch[rows] < 0]
        for part in torch.split(new, ROWS) if len(new) else ():
            self._begin_q(part)
            self.r[part] = self._quadratic(self.spread, part)
            self.epoch[part] = 0
        rows = rows[self.epoch[rows] < self.steps]
        epochs = self.epoch[rows]
        # Each step is read once, for all candidates that do not know of it.
        for start, end in pairwise([*sorted(set(epochs.tolist())), self.steps]):
            for part in torch.split(rows[epochs <= start], self._rows_at_once(end - start)):
                self._catch_up(part, start, end)
        self.epoch[rows] = self.steps

    def shares(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return tr Q and tr( (1 + Q)^-1 Q ) of candidates now, without R: (k,) each.

        rows: candidates that were never settled.
        """
        traces, shares = [], []
        for part in torch.split(rows, ROWS):
            self._begin_q(part)
            q = self.q[part]
            for some in torch.split(torch.arange(len(part)), self._rows_at_once(self.steps)):
                g = self._overlaps(self._w, part[some], 0, self.steps)
                q[some] -= (g * self._signs_of(0, self.steps)) @ g.mT
            traces.append(_traces(q))
            shares.append(_traces(torch.linalg.solve(_one(q) + q, q)))
        return torch.cat(traces), torch.cat(shares)

    def most_new(self) -> float:
        """Return the largest tr Q of the candidates now."""
        self.settle(torch.arange(len(self.h)))
        return float(_traces(self.q).max())

    def gains(self, rows: Tensor | None = None) -> Tensor:
        """By how much each candidate, or each of `rows`, would lower the trace: (k,)."""
        return self.gains_and_shares(torch.arange(len(self.h)) if rows is None else rows)[0]

    def gains_and_shares(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return tr( (1 + Q)^-1 R ) and tr( (1 + Q)^-1 Q ) of candidates now: (k,) each."""
        self.settle(rows)
        c = self.a.shape[1]
        gains, shares = [], []
        for part in torch.split(rows, ROWS):
            q, r = self.q[part], self.r[part]
            both = torch.linalg.solve(_one(q) + q, torch.cat([r, q], dim=2))
            gains.append(_traces(both[:, :, :c]))
            shares.append(_traces(both[:, :, c:]))
        return torch.cat(gains), torch.cat(shares)

    def losses(self, rows: list[int]) -> Tensor:
        """By how much the trace would rise without each of these, which are in M: (len,)."""
        self.settle(torch.tensor(rows))
        q, r = self.q[rows], self.r[rows]
        return _traces(torch.linalg.solve(_one(q) - q, r))

    def add(self, i: int, near: list[int] | None = None) -> Step:
        """M + V V^T. near: candidates likely to be next, for which some work is shared."""
        return self._change(i, 1.0, near or [])

    def remove(self, i: int, near: list[int] | None = None) -> None:
        """M - V V^T. near: as for `add`."""
        self._change(i, -1.0, near or [])

    def ratio(self) -> float:
        """Return a number that no eigenvalue of M^-1 F exceeds (see `fisher_ratio`).

        For M to which samples were added, and from which none was removed.
        """
        steps = self._w[: self.steps * self.a.shape[1]].flatten(start_dim=1)

        def solve(vector: Tensor) -> Tensor:
            return times(self.inverse, vector).sub_(steps.T @ (steps @ vector))

        return largest_ratio(solve, lambda vector: times(self.pool, vector), self._draw)

    def trace(self) -> float:
        """Return tr(M^-1 F), the objective."""
        return self.first_trace + self.change_of_trace

    def fold(self) -> None:
        """Count all steps into M^-1 and X; Q and R that do not know of them are forgotten."""
        c = self.a.shape[1]
        w, h = (t[: self.steps * c].flatten(start_dim=1).T for t in (self._w, self._h))
        signs = torch.tensor(self._signs, dtype=w.dtype).repeat_interleave(c)
        self.inverse.sub_(symmetric_product(w * signs, w.T))
        self.spread.sub_(symmetric_product(torch.cat([w, h], dim=1), torch.cat([h, w], dim=1).T))
        self._ridge = None
        self.epoch = torch.where(self.epoch == self.steps, 0, -1)
        self._has_q = self.epoch == 0
        self.steps = 0
        self._signs.clear()
        self._products.clear()

    def _change(self, i: int, sign: float, near: list[int]) -> Step:
        if self.steps == self.most_steps:
            self.fold()
        c, d = self.a.shape[1], self.h.shape[1]
        self.settle(torch.tensor([i]))
        # Where rounding left 1 - Q singular, features are so long that a label says everything.
        values, axes = torch.linalg.eigh(_one(self.q[i]) + sign * self.q[i])
        root = axes / values.clamp(min=SINGULAR).sqrt()
        inner = root.T @ self.r[i] @ root  # W^T F W
        self.change_of_trace -= sign * float(inner.diagonal().sum())
        (inverse_v, spread_v), before = self._product(i, near)  # (c, d, c) each
        w = inverse_v @ root
        half = sign * (spread_v @ root) - w @ inner / 2
        if len(self._w) == self.steps * c:  # twice as many as before
            room = min(self.most_steps, max(TOGETHER, 2 * self.steps)) * c
            self._w, self._h = (
                torch.cat([t, t.new_empty(room - len(t), c, d)]) for t in (self._w, self._h)
            )
        place = slice(self.steps * c, (self.steps + 1) * c)
        self._w[place], self._h[place] = w.movedim(2, 0), half.movedim(2, 0)
        self._signs.append(sign)
        self.steps += 1
        noise = torch.randn(c, generator=self._rng, dtype=w.dtype)
        self._draw += torch.outer(self.a[i] @ noise, self.h[i]).flatten()
        return Step(root, before, spread_v)

    def _product(self, i: int, near: list[int]) -> tuple[Tensor, Tensor]:
        """M^-1 V and X V of a candidate now, (2, c, d, c), and V^T W of all steps, (c, steps c)."""
        if i not in self._products:
            # More where most of the last ones were taken.
            uses = self._ahead - len(self._products)
            self._ahead = min(TOGETHER, FEW + WORTH * uses)
            rows = [i, *(k for k in near if k != i)][: self._ahead]
            self._ahead = len(rows)
            products = self._first_products(rows)
            overlaps = self._step_products(rows, products, 0)
            both = zip(products, overlaps, strict=True)
            self._products = {k: (self.steps, *of_k) for k, of_k in zip(rows, both, strict=True)}
        epoch, product, before = self._products.pop(i)
        since = self._step_products([i], product[None], epoch)
        return product, torch.cat([before, since[0]], dim=1)

    def _step_products(self, rows: list[int], products: Tensor, epoch: int) -> Tensor:
        """Count the steps from `epoch` on into M^-1 V and X V, (k, 2, c, d, c), in place.

        Returns V^T W of these steps, (k, c, steps c).
        """
        c, d = self.a.shape[1], self.h.shape[1]
        if epoch == self.steps:
            return self.h.new_empty(len(rows), c, 0)
        places = torch.tensor(rows)
        g = self._overlaps(self._w, places, epoch, self.steps)
        overlaps = self._overlaps(self._h, places, epoch, self.steps)
        with_signs = g * torch.tensor(self._signs[epoch:], dtype=g.dtype).repeat_interleave(c)
        both = torch.cat([with_signs, overlaps], dim=1).flatten(0, 1).T.numpy()  # (steps c, k 2 c)
        of_steps = slice(epoch * c, self.steps * c)
        w, h = (t[of_steps].flatten(start_dim=1).T.numpy() for t in (self._w, self._h))
        products -= torch.from_numpy(w @ both).view(c, d, len(rows), 2, c).permute(2, 3, 0, 1, 4)
        of_h = torch.from_numpy(h @ g.flatten(0, 1).T.numpy()).view(c, d, len(rows), c)
        products[:, 1] -= of_h.permute(2, 0, 1, 3)
        return g

    def _first_products(self, rows: list[int]) -> Tensor:
        """M^-1 V and X V of candidates before any step: (k, 2, c, d, c)."""
        c, d = self.a.shape[1], self.h.shape[1]
        h, a = self.h[rows].T.numpy(), self.a[rows]
        result = self.h.new_empty(len(rows), 2, c, d, c)
        if self._ridge is not None:
            result[:, 0] = torch.einsum("bd,bjk->bjdk", self.h[rows] / self._ridge, a)
        for k, matrix in enumerate((self.inverse, self.spread)):
            if k == 0 and self._ridge is not None:
                continue
            blocks = matrix.view(c * d, c, d).numpy()
            of_h = torch.stack([torch.from_numpy(blocks[:, j] @ h) for j in range(c)])
            result[:, k] = torch.einsum("jmb,bjk->bmk", of_h, a).view(-1, c, d, c)
        return result

    def _overlaps(self, steps: Tensor, rows: Tensor, start: int, end: int) -> Tensor:
        """V^T W, or V^T H, of the steps from `start` to before `end`: (k, c, steps c)."""
        c, d = self.a.shape[1], self.h.shape[1]
        columns = steps[start * c : end * c].view(-1, d).numpy().T
        of_h = torch.from_numpy(self.h[rows].numpy() @ columns).view(len(rows), -1, c)
        return self.a[rows].mT @ of_h.mT

    def _catch_up(self, rows: Tensor, start: int, end: int) -> None:
        g, overlaps = (self._overlaps(t, rows, start, end) for t in (self._w, self._h))
        self.q[rows] -= (g * self._signs_of(start, end)) @ g.mT
        cross = g @ overlaps.mT
        self.r[rows] -= cross + cross.mT

    def _rows_at_once(self, steps: int) -> int:
        """Candidates whose overlaps with so many steps stay in a processor's cache."""
        return max(16, 2**20 // max(1, self.a.shape[1] ** 2 * steps))

    def _signs_of(self, start: int, end: int) -> Tensor:
        return torch.tensor(self._signs[start:end], dtype=self.h.dtype).repeat_interleave(
            self.a.shape[1]
        )

    def _begin_q(self, rows: Tensor) -> None:
        new = rows[~self._has_q[rows]]
        if len(new):
            self.q[new] = self._inverse_forms(new)
            self._has_q[new] = True

    def _inverse_forms(self, rows: Tensor) -> Tensor:
        """V^T M^-1 V of candidates before any step: (k, c, c)."""
        if self._ridge is None:
            return self._quadratic(self.inverse, rows)
        a, lengths = self.a[rows], self.h[rows].square().sum(dim=1) / self._ridge
        return a.mT @ a * lengths[:, None, None]

    def _quadratic(self, matrix: Tensor, rows: Tensor) -> Tensor:
        """V^T matrix V of candidates, the matrix being symmetric: (k, c, c)."""
        c, d = self.a.shape[1], self.h.shape[1]
        blocks, h = matrix.view(c, d, c, d), self.h[rows]
        inner = torch.empty(len(rows), c, c, dtype=matrix.dtype)
        for i in range(c):
            for j in range(i + 1):
                inner[:, i, j] = inner[:, j, i] = forms(blocks[i, :, j], h)
        return self.a[rows].mT @ inner @ self.a[rows]


def _traces(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(dim=1)


def _one(q: Tensor) -> Tensor:
    return torch.eye(q.shape[-1], dtype=q.dtype)
