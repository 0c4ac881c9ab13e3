"""The Fisher information of a last layer, and what is left of it: BAIT's traces (see there).

No I(x) says anything of weights that add the same to all classes, S_x 1 = 0. There F is 0 while
rounding of it, over the ridge, would be all that is seen; so everything is written in a basis B of
what is orthogonal to 1, (C - 1) d numbers, and no trace changes.

I(x) has low rank: I(x) = V V^T with V = A (x) h and A A^T = B^T S_x B, ((C - 1) d, C). By Woodbury

    tr( (M +- V V^T)^-1 F ) = tr( M^-1 F ) -+ tr( (1 +- Q)^-1 R ),
    Q = V^T M^-1 V,   R = V^T M^-1 F M^-1 V,

C x C each, and both are carried along for all candidates while M changes by rank C.
"""

from __future__ import annotations

import torch
from torch import Tensor

SINGULAR = 1e-10


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
        """Return tr(M^-1 F), the objective."""
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


def whole(p: Tensor) -> Tensor:
    """Posteriors that sum to 1 in double precision too: where they miss it by single precision,
    diag(p) - p p^T has an eigenvalue below 0, and over many samples more than the ridge makes up.
    """
    return p / p.sum(dim=1, keepdim=True)


def roots(p: Tensor) -> Tensor:
    """A with A A^T = B^T (diag(p) - p p^T) B: columns sqrt(p_y) B^T (p - e_y). p: (n, C), returns
    (n, C - 1, C)."""
    full = (p[:, :, None] - torch.eye(p.shape[1], dtype=p.dtype)) * p.sqrt()[:, None, :]
    return basis(p.shape[1]).T @ full


def information(p: Tensor, h: Tensor) -> Tensor:
    """sum_x B^T (diag(p) - p p^T)(x) B (x) h h^T. p: (n, C), h: (n, d), returns the square matrix
    of (C - 1) d rows."""
    a = roots(p)
    c, d = a.shape[1], h.shape[1]
    total = p.new_zeros(c, d, c, d)
    for i in range(c):
        for j in range(i + 1):
            weight = (a[:, i] * a[:, j]).sum(dim=1)
            total[i, :, j] = total[j, :, i] = (h * weight[:, None]).T @ h
    return total.reshape(c * d, c * d)


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
