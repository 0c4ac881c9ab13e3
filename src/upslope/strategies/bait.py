"""BAIT: a batch that leaves the least of the pool's Fisher information unknown (Ash et al. 2021).

With p the posterior of x, h its features, S_x = diag(p) - p p^T and n candidates, the Fisher
information of the last weight matrix is

    I(x) = sum_y p_y g_y g_y^T = S_x (x) h h^T,    g_y = (p - e_y) (x) h            (C d x C d)

and the batch s is to minimise, with F = sum_x I(x) over the candidates and L the labelled set,

    tr( M^-1 F ),    M = lambda 1 + sum over L and s of I(x):

2K samples are added one by one, each that which lowers it most; then K are taken away again, each
that which raises it least.

I(x) has rank C - 1: I(x) = V V^T with V = A (x) h and A A^T = S_x, (C d, C). By Woodbury

    tr( (M +- V V^T)^-1 F ) = tr( M^-1 F ) -+ tr( (1 +- Q)^-1 R ),
    Q = V^T M^-1 V,   R = V^T M^-1 F M^-1 V,

C x C each, and both are carried along for all candidates while M changes by rank C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from upslope.errors import SelectionError
from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy

MOST = 6000
"""Largest C d: a matrix of that size in double precision is 288 MB, and four are held."""
SINGULAR = 1e-10


@dataclass(frozen=True)
class Bait(QueryStrategy):
    """Least remaining Fisher information of the last layer, for few classes."""

    name: ClassVar[str] = "bait"
    reference: ClassVar[str] = "Ash et al., NeurIPS 2021"
    requires: ClassVar[str] = "one forward a candidate and a labelled sample"
    cost: ClassVar[str] = (
        "(n + m) C^2 d^2 + K (n C^2 d + C^3 d^2); memory (C d)^2 + n C^2, C d <= 6000"
    )
    home: ClassVar[str] = "small and medium budgets, few classes"

    ridge: Annotated[float, Field(gt=0, description="lambda; the source has 0.01 on CIFAR-10")] = (
        0.01
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Posteriors and features, of the labelled set too."""
        return (Need.of("probabilities", labelled=True), Need.of("features", labelled=True))

    def check_shapes(self, signals: Mapping[Need, Tensor]) -> None:
        """Also refuse classes times features beyond 6000, whose matrices would not fit."""
        super().check_shapes(signals)
        p, h = (signals[need] for need in self.needs)
        check_size(p.shape[1], h.shape[1])

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """Forward to 2K, back to K; scores are the first gains."""
        p, h = (pool.signal(need).double() for need in self.needs)
        check_size(p.shape[1], h.shape[1])
        p_l, h_l = (pool.labelled_signal(need).double() for need in self.needs)
        fisher = Fisher(p, h, information(p_l, h_l), self.ridge)
        scores = fisher.gains()
        chosen: list[int] = []
        for _ in range(min(2 * budget, len(pool))):
            gains = fisher.gains()
            gains[chosen] = -torch.inf
            chosen.append(int(gains.argmax()))
            fisher.add(chosen[-1])
        fisher.keep(chosen)
        kept = list(range(len(chosen)))
        while len(kept) > budget:
            # Of equal ones the last chosen goes, so that ties stay with the smaller id.
            gone = len(kept) - 1 - int(fisher.losses(kept).flip(0).argmin())
            fisher.remove(kept.pop(gone))
        return Choice([chosen[i] for i in kept], scores, {"trace": fisher.trace()})


class Fisher:
    """tr(M^-1 F), and what it would be with a sample more or less. p: (n, C), h: (n, d)."""

    def __init__(self, p: Tensor, h: Tensor, known: Tensor, ridge: float) -> None:
        self.h, self.a = h, roots(p)
        size = len(known)
        self.pool = information(p, h)
        matrix = known + ridge * torch.eye(size, dtype=known.dtype)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        self.q = self.quadratic(self.inverse)
        self.r = self.quadratic(self.inverse @ self.pool @ self.inverse)

    def quadratic(self, matrix: Tensor) -> Tensor:
        """V^T matrix V of every candidate, the matrix being symmetric: (n, C, C)."""
        n, c = self.a.shape[:2]
        d = self.h.shape[1]
        blocks = matrix.reshape(c, d, c, d)
        inner = torch.empty(n, c, c, dtype=matrix.dtype)
        for i in range(c):
            for j in range(i + 1):
                inner[:, i, j] = inner[:, j, i] = ((self.h @ blocks[i, :, j]) * self.h).sum(dim=1)
        return self.a.mT @ inner @ self.a

    def gains(self) -> Tensor:
        """By how much each candidate would lower the trace: (n,)."""
        return _traces(torch.linalg.solve(_one(self.q) + self.q, self.r))

    def losses(self, rows: list[int]) -> Tensor:
        """By how much the trace would rise without each of these, which are in M: (len,)."""
        q, r = self.q[rows], self.r[rows]
        return _traces(torch.linalg.solve(_one(q) - q, r))

    def add(self, i: int) -> None:
        """M + V V^T: the inverse less W W^T, with W = M^-1 V (1 + Q)^-1/2."""
        self._change(i, 1.0)

    def remove(self, i: int) -> None:
        """M - V V^T: the inverse and W W^T, with W = M^-1 V (1 - Q)^-1/2."""
        self._change(i, -1.0)

    def keep(self, rows: list[int]) -> None:
        """Forget all other candidates: from here on, row i is rows[i]. F stays that of all."""
        self.h, self.a, self.q, self.r = (t[rows] for t in (self.h, self.a, self.q, self.r))

    def trace(self) -> float:
        """tr(M^-1 F)."""
        return float((self.inverse * self.pool).sum())

    def _change(self, i: int, sign: float) -> None:
        v = torch.einsum("ck,d->cdk", self.a[i], self.h[i]).flatten(0, 1)  # (C d, C)
        # Where rounding left 1 - Q singular, features are so long that a label says everything.
        values, axes = torch.linalg.eigh(_one(self.q[i]) + sign * self.q[i])
        w = self.inverse @ v @ (axes / values.clamp(min=SINGULAR).sqrt())
        pool_w = self.pool @ w
        u = self.inverse @ pool_w
        # (M^-1 - s W W^T) F (M^-1 - s W W^T), seen from V
        vw, vu = self._seen(w), self._seen(u)
        cross = vw @ vu.mT
        self.q = self.q - sign * vw @ vw.mT
        self.r = self.r - sign * (cross + cross.mT) + vw @ (w.T @ pool_w) @ vw.mT
        self.inverse.addmm_(w, w.T, alpha=-sign)

    def _seen(self, w: Tensor) -> Tensor:
        """V^T w of every candidate: (n, C, k)."""
        c, d = self.a.shape[1], self.h.shape[1]
        inner = self.h @ w.reshape(c, d, -1).movedim(0, 1).flatten(start_dim=1)  # (n, C k)
        return self.a.mT @ inner.reshape(len(self.h), c, -1)


def roots(p: Tensor) -> Tensor:
    """A with A A^T = diag(p) - p p^T: columns sqrt(p_y) (p - e_y). p: (n, C), returns (n, C, C)."""
    return (p[:, :, None] - torch.eye(p.shape[1], dtype=p.dtype)) * p.sqrt()[:, None, :]


def information(p: Tensor, h: Tensor) -> Tensor:
    """sum_x (diag(p) - p p^T) (x) h h^T. p: (n, C), h: (n, d), returns (C d, C d)."""
    c, d = p.shape[1], h.shape[1]
    total = p.new_zeros(c, d, c, d)
    for i in range(c):
        for j in range(i + 1):
            weight = p[:, i] * (float(i == j) - p[:, j])
            total[i, :, j] = total[j, :, i] = (h * weight[:, None]).T @ h
    return total.reshape(c * d, c * d)


def check_size(classes: int, width: int) -> None:
    """Raise SelectionError where matrices of classes times features would not fit."""
    if classes * width > MOST:
        raise SelectionError(
            f"Expected classes times features to be at most {MOST} for bait, whose matrices are "
            f"that size squared, but {classes} times {width} is {classes * width}. Take badge, "
            "or a narrower network."
        )


def _traces(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(dim=1)


def _one(q: Tensor) -> Tensor:
    return torch.eye(q.shape[-1], dtype=q.dtype)
