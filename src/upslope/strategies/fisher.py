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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.strategies.fisher_ratio import largest_ratio
from upslope.strategies.information import roots
from upslope.strategies.symmetric import ROWS, forms, inverses, times

SINGULAR = 1e-10
TOGETHER = 64
"""Samples whose products with M^-1 and X are computed together: each matrix is read once."""


FEW = 4
"""Steps that are few enough to copy."""
Matrix = NDArray[np.float64]


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
        self.h, self.a = h, roots(p)
        n, c = self.a.shape[:2]
        self.pool = pool
        self._rng = torch.Generator().manual_seed(0)
        noise = torch.randn(len(pool), generator=self._rng, dtype=h.dtype)
        self.inverse, self.spread, self._draw = inverses(labelled, ridge, pool, noise)
        self.first_trace = float((self.inverse * pool).sum())
        self.change_of_trace = 0.0
        self.q, self.r = torch.zeros(2, n, c, c, dtype=h.dtype)
        self.epoch = torch.full((n,), -1)
        """Steps that Q and R of each candidate know of; -1 where they were never computed."""
        self.steps = 0
        self._w = self._h = torch.empty(c, 0, h.shape[1], dtype=h.dtype)  # (c, steps c, d)
        self._signs: list[float] = []
        self._products: dict[int, tuple[int, Tensor]] = {}

    @property
    def most_steps(self) -> int:
        """Steps whose W and H take as much memory as M^-1 and X; `fold` them then."""
        return max(TOGETHER, self.h.shape[1])

    def settle(self, rows: Tensor) -> None:
        """Bring Q and R of candidates up to date. rows: (k,) distinct positions."""
        new = rows[self.epoch[rows] < 0]
        for part in torch.split(new, ROWS) if len(new) else ():
            self.q[part] = self._quadratic(self.inverse, part)
            self.r[part] = self._quadratic(self.spread, part)
            self.epoch[part] = 0
        rows = rows[self.epoch[rows] < self.steps]
        for epoch in sorted(set(self.epoch[rows].tolist())):
            columns = self.a.shape[1] ** 2 * (self.steps - epoch)
            size = max(16, 2**20 // columns)
            for part in torch.split(rows[self.epoch[rows] == epoch], size):
                self._catch_up(part, epoch)
        self.epoch[rows] = self.steps

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
        c, d = self.a.shape[1], self.h.shape[1]
        steps = self._w[:, : self.steps * c]

        def solve(vector: Tensor) -> Tensor:
            by_class = vector.view(c, d, 1)
            sums = (steps @ by_class).sum(dim=0)
            taken_off = (steps.mT @ sums).flatten()
            return times(self.inverse, vector).sub_(taken_off)

        return largest_ratio(solve, lambda vector: times(self.pool, vector), self._draw)

    def trace(self) -> float:
        """Return tr(M^-1 F), the objective."""
        return self.first_trace + self.change_of_trace

    def fold(self) -> None:
        """Count all steps into M^-1 and X; Q and R that do not know of them are forgotten."""
        c, d = self.a.shape[1], self.h.shape[1]
        w, h = (t[:, : self.steps * c].movedim(1, 2).reshape(c * d, -1) for t in (self._w, self._h))
        signs = torch.tensor(self._signs, dtype=w.dtype).repeat_interleave(c)
        self.inverse.sub_(torch.from_numpy((w * signs).numpy() @ w.T.numpy()))
        cross = torch.from_numpy(w.numpy() @ h.T.numpy())
        self.spread.sub_(cross).sub_(cross.T)
        self.epoch = torch.where(self.epoch == self.steps, 0, -1)
        self.steps = 0
        self._signs.clear()
        self._products.clear()

    def _change(self, i: int, sign: float, near: list[int]) -> Step:
        if self.steps == self.most_steps:
            self.fold()
        before, _ = self._overlaps(torch.tensor([i]), 0)
        c, d = self.a.shape[1], self.h.shape[1]
        self.settle(torch.tensor([i]))
        # Where rounding left 1 - Q singular, features are so long that a label says everything.
        values, axes = torch.linalg.eigh(_one(self.q[i]) + sign * self.q[i])
        root = axes / values.clamp(min=SINGULAR).sqrt()
        inner = root.T @ self.r[i] @ root  # W^T F W
        self.change_of_trace -= sign * float(inner.diagonal().sum())
        inverse_v, spread_v = self._product(i, near)  # (c, d, c) each
        w = inverse_v @ root
        half = sign * (spread_v @ root) - w @ inner / 2
        if self._w.shape[1] == self.steps * c:  # twice as many as before
            room = min(self.most_steps, max(TOGETHER, 2 * self.steps)) * c
            self._w, self._h = (
                torch.cat([t, t.new_empty(c, room - t.shape[1], d)], dim=1)
                for t in (self._w, self._h)
            )
        place = slice(self.steps * c, (self.steps + 1) * c)
        self._w[:, place], self._h[:, place] = w.mT, half.mT
        self._signs.append(sign)
        self.steps += 1
        noise = torch.randn(c, generator=self._rng, dtype=w.dtype)
        self._draw += torch.outer(self.a[i] @ noise, self.h[i]).flatten()
        return Step(root, before[0], spread_v)

    def _product(self, i: int, near: list[int]) -> Tensor:
        """M^-1 V and X V of a candidate now: (2, c, d, c)."""
        if i not in self._products:
            rows = [i, *(k for k in near if k != i)][:TOGETHER]
            products = self._first_products(rows)
            self._step_products(rows, products, 0)
            self._products = {k: (self.steps, x) for k, x in zip(rows, products, strict=True)}
        epoch, product = self._products.pop(i)
        self._step_products([i], product[None], epoch)
        return product

    def _step_products(self, rows: list[int], products: Tensor, epoch: int) -> None:
        """Count the steps from `epoch` on into M^-1 V and X V: (k, 2, c, d, c), in place."""
        if epoch == self.steps:
            return
        c, d = self.a.shape[1], self.h.shape[1]
        g, overlaps = self._overlaps(torch.tensor(rows), epoch)
        with_signs = g * torch.tensor(self._signs[epoch:], dtype=g.dtype).repeat_interleave(c)
        both = torch.cat([with_signs, overlaps], dim=1).flatten(0, 1).T.numpy()  # (steps c, k 2 c)
        of_steps = slice(epoch * c, self.steps * c)
        right = g.flatten(0, 1).T.numpy()
        for k, (w, h) in enumerate(zip(self._w[:, of_steps], self._h[:, of_steps], strict=True)):
            of_w = torch.from_numpy(w.T.numpy() @ both).view(d, len(rows), 2, c)
            products[:, :, k] -= of_w.permute(1, 2, 0, 3)
            of_h = torch.from_numpy(h.T.numpy() @ right).view(d, len(rows), c)
            products[:, 1, k] -= of_h.transpose(0, 1)

    def _first_products(self, rows: list[int]) -> Tensor:
        """M^-1 V and X V of candidates before any step: (k, 2, c, d, c)."""
        c, d = self.a.shape[1], self.h.shape[1]
        h, a = self.h[rows].T.numpy(), self.a[rows]
        result = self.h.new_empty(len(rows), 2, c, d, c)
        for k, matrix in enumerate((self.inverse, self.spread)):
            blocks = matrix.view(c * d, c, d).numpy()
            of_h = torch.stack([torch.from_numpy(blocks[:, j] @ h) for j in range(c)])
            result[:, k] = torch.einsum("jmb,bjk->bmk", of_h, a).view(-1, c, d, c)
        return result

    def _overlaps(self, rows: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """V^T W and V^T H of the steps from `epoch` on: (k, c, steps c) each."""
        h, a = self.h[rows].numpy(), self.a[rows].mT
        place = slice(epoch * a.shape[1], self.steps * a.shape[1])
        return a @ _by_class(h, self._w[:, place]), a @ _by_class(h, self._h[:, place])

    def _catch_up(self, rows: Tensor, epoch: int) -> None:
        g, overlaps = self._overlaps(rows, epoch)
        signs = torch.tensor(self._signs[epoch:], dtype=g.dtype).repeat_interleave(g.shape[1])
        self.q[rows] -= (g * signs) @ g.mT
        cross = g @ overlaps.mT
        self.r[rows] -= cross + cross.mT

    def _quadratic(self, matrix: Tensor, rows: Tensor) -> Tensor:
        """V^T matrix V of candidates, the matrix being symmetric: (k, c, c)."""
        c, d = self.a.shape[1], self.h.shape[1]
        blocks, h = matrix.view(c, d, c, d), self.h[rows]
        inner = torch.empty(len(rows), c, c, dtype=matrix.dtype)
        for i in range(c):
            for j in range(i + 1):
                inner[:, i, j] = inner[:, j, i] = forms(blocks[i, :, j], h)
        return self.a[rows].mT @ inner @ self.a[rows]


def _by_class(h: Matrix, steps: Tensor) -> Tensor:
    """What each row of h sees of W or H, by classes: (k, c, steps c). steps: (c, steps c, d)."""
    c, columns, d = steps.shape
    if columns <= FEW * c:  # one product of a copy is faster than a thin one for each class
        products = h @ steps.reshape(c * columns, d).numpy().T
        return torch.from_numpy(products).view(len(h), c, columns)
    return torch.stack([torch.from_numpy(h @ of_class.numpy().T) for of_class in steps], dim=1)


def _traces(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(dim=1)


def _one(q: Tensor) -> Tensor:
    return torch.eye(q.shape[-1], dtype=q.dtype)
