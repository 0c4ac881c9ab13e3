"""The Fisher information of a last layer, and what is left of it: BAIT's traces (see there).

No I(x) says anything of weights that add the same to all classes, S_x 1 = 0. There F is 0 while
rounding of it, over the ridge, would be all that is seen; so everything is written in a basis B of
what is orthogonal to 1, (C - 1) d numbers, and no trace changes.

I(x) has low rank: I(x) = V V^T with V = A (x) h, ((C - 1) d, C - 1), and A A^T = B^T S_x B. By
Woodbury

    tr( (M +- V V^T)^-1 F ) = tr( M^-1 F ) -+ tr( (1 +- Q)^-1 R ),
    Q = V^T M^-1 V,   R = V^T M^-1 F M^-1 V,

C - 1 squared each, and both are carried along for all candidates while M changes by rank C - 1:

    M +- U U^T has the inverse M^-1 -+ W W^T with W = M^-1 U (1 +- U^T M^-1 U)^-1/2, hence

    Q' = Q -+ G G^T,   G = V^T W,
    R' = R - (G H^T + H G^T),   H = V^T (+- M^-1 F W - W W^T F W / 2)
"""

from __future__ import annotations

import torch
from torch import Tensor

SINGULAR = 1e-10
ROWS = 2048
"""Candidates at a time, whose matrices and products stay in a processor's cache."""
SIDE = 128
"""Rows of a block of a symmetric product, of which only blocks up to the diagonal are computed."""


class Fisher:
    """tr(M^-1 F), and what it would be with a sample more or less. p: (n, C), h: (n, d)."""

    def __init__(self, p: Tensor, h: Tensor, labelled_rows: Tensor, ridge: float) -> None:
        self.h, self.a = h, roots(p)
        size = len(labelled_rows)
        self.pool = information(p, h)
        matrix = labelled_rows + ridge * torch.eye(size, dtype=labelled_rows.dtype)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        self.q = self.quadratic(self.inverse)
        self.r = self.quadratic(symmetric_product(self.inverse @ self.pool, self.inverse))

    def quadratic(self, matrix: Tensor) -> Tensor:
        """V^T matrix V of every candidate, the matrix being symmetric: (n, C - 1, C - 1)."""
        n, c = self.a.shape[:2]
        d = self.h.shape[1]
        blocks = matrix.reshape(c, d, c, d)
        inner = torch.empty(n, c, c, dtype=matrix.dtype)
        for i in range(c):
            for j in range(i + 1):
                inner[:, i, j] = inner[:, j, i] = self._forms(blocks[i, :, j])
        return self.a.mT @ inner @ self.a

    def _forms(self, block: Tensor) -> Tensor:
        """h^T block h of every candidate: (n,). block: (d, d)."""
        forms = torch.zeros(len(self.h), dtype=block.dtype)
        symmetric = block + block.T
        for side in range(0, len(block), SIDE):
            # What lies before the diagonal block counts twice, so what lies after it is left out.
            end = min(side + SIDE, len(block))
            half = symmetric[:end, side:end].clone()
            half[side:] /= 2
            for part, h in zip(torch.split(forms, ROWS), torch.split(self.h, ROWS), strict=True):
                part += (h[:, :end] @ half).mul_(h[:, side:end]).sum(dim=1)
        return forms

    def gains(self) -> Tensor:
        """By how much each candidate would lower the trace: (n,)."""
        parts = zip(torch.split(self.q, ROWS), torch.split(self.r, ROWS), strict=True)
        return torch.cat([_traces(torch.linalg.solve(_one(q) + q, r)) for q, r in parts])

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
        """Return tr(M^-1 F), the objective."""
        return float((self.inverse * self.pool).sum())

    def _change(self, i: int, sign: float) -> None:
        c, d = self.a.shape[1], self.h.shape[1]
        v = torch.einsum("ck,d->cdk", self.a[i], self.h[i]).flatten(0, 1)  # (C d, C)
        # Where rounding left 1 - Q singular, features are so long that a label says everything.
        values, axes = torch.linalg.eigh(_one(self.q[i]) + sign * self.q[i])
        w = self.inverse @ v @ (axes / values.clamp(min=SINGULAR).sqrt())
        pool_w = self.pool @ w
        half = sign * (self.inverse @ pool_w) - w @ (w.T @ pool_w) / 2
        both = torch.cat([w, half], dim=1).reshape(c, d, -1).movedim(0, 1).flatten(start_dim=1)
        views = (torch.split(t, ROWS) for t in (self.h, self.a, self.q, self.r))
        for h, a, q, r in zip(*views, strict=True):
            products = a.mT @ (h @ both).reshape(len(h), c, -1)
            g, half_seen = products[:, :, :c], products[:, :, c:]
            q.baddbmm_(g, g.mT, alpha=-sign)
            cross = g @ half_seen.mT
            r.sub_(cross).sub_(cross.mT)
        self.inverse.addmm_(w, w.T, alpha=-sign)


def whole(p: Tensor) -> Tensor:
    """Posteriors that sum to 1 in double precision too: where they miss it by single precision,
    diag(p) - p p^T has an eigenvalue below 0, and over many samples more than the ridge makes up.
    """
    return p / p.sum(dim=1, keepdim=True)


def roots(p: Tensor) -> Tensor:
    """Square A with A A^T = B^T (diag(p) - p p^T) B. p: (n, C), returns (n, C - 1, C - 1).

    diag(p) - p p^T = diag(s) (1 - s s^T) diag(s) with s = sqrt(p), of length 1. A Householder
    reflection takes s to the last axis, so that its other columns Z have Z Z^T = 1 - s s^T.
    """
    if p.shape[1] == 1:
        return torch.zeros(len(p), 1, 1, dtype=p.dtype)
    s = p.sqrt()
    v = s.clone()
    v[:, -1] += 1
    z = torch.eye(p.shape[1], dtype=p.dtype)[:, :-1] - v[:, :, None] * (s / v[:, -1:])[:, None, :-1]
    return basis(p.shape[1]).T @ (s[:, :, None] * z)


def information(p: Tensor, h: Tensor) -> Tensor:
    """sum_x B^T (diag(p) - p p^T)(x) B (x) h h^T. p: (n, C), h: (n, d), returns the square matrix
    of (C - 1) d rows."""
    a = roots(p)
    c, d = a.shape[1], h.shape[1]
    total = p.new_zeros(c, d, c, d)
    for i in range(c):
        for j in range(i + 1):
            weight = (a[:, i] * a[:, j]).sum(dim=1)
            gram = p.new_zeros(d, d)
            for part, of_part in zip(torch.split(h, ROWS), torch.split(weight, ROWS), strict=True):
                gram += symmetric_product((part * of_part[:, None]).T, part)
            total[i, :, j] = total[j, :, i] = gram
    return total.reshape(c * d, c * d)


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right where that is known to be symmetric: half of the multiplications."""
    size = len(left)
    result = left.new_empty(size, size)
    side = max(SIDE, size // 8)
    for start in range(0, size, side):
        end = min(start + side, size)
        torch.mm(left[start:end], right[:, :end], out=result[start:end, :end])
        result[:start, start:end] = result[start:end, :start].T
    return result


def basis(classes: int) -> Tensor:
    """B: orthonormal columns that sum to 0, (C, C - 1); of one class, which has none, (1, 1)."""
    if classes == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    centring = torch.eye(classes, dtype=torch.float64) - 1 / classes
    columns: Tensor = torch.linalg.qr(centring[:, :-1]).Q
    return columns


def _traces(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(dim=1)


def _one(q: Tensor) -> Tensor:
    return torch.eye(q.shape[-1], dtype=q.dtype)
