"""Rank-one optimal design: which vectors to add so that the least is left unknown of a pool.

With a vector phi per sample, the information of a sample is phi phi^T, and a batch s is to minimise

    tr( M^-1 F ),    M = B + sum over s of phi phi^T                                   (d x d)

for given B (what is known already) and F (what the pool looks like). Adding phi to M lowers the
trace, and removing it raises the trace, by

    phi^T M^-1 F M^-1 phi / (1 + phi^T M^-1 phi),   phi^T M^-1 F M^-1 phi / (1 - phi^T M^-1 phi)

(Sherman-Morrison). 2K vectors are added one by one, each that which lowers the trace most; then K
are taken away again, each that which raises it least. The inverse costs d^3 once, the products
with all vectors n d^2 once, and each step n d.
"""

from __future__ import annotations

import torch
from torch import Tensor

SINGULAR = 1e-12
"""Least 1 - phi^T M^-1 phi, which rounding may leave at 0 where phi is all that M has of it."""


class RankOneDesign:
    """tr(M^-1 F), and what it would be with a vector more or less. x: (n, d), base, target: (d, d).

    All in double precision.
    """

    def __init__(self, x: Tensor, base: Tensor, target: Tensor) -> None:
        self.x, self.target = x, target
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(base))
        products = x @ self.inverse  # (n, d)
        self.q = (products * x).sum(dim=1)
        """phi^T M^-1 phi of every vector, (n,)."""
        self.r = ((products @ target) * products).sum(dim=1)
        """phi^T M^-1 F M^-1 phi of every vector, (n,)."""

    def gains(self) -> Tensor:
        """By how much each vector would lower the trace: (n,)."""
        return self.r / (1 + self.q)

    def losses(self, rows: list[int]) -> Tensor:
        """By how much the trace would rise without each of these, which are in M: (len,)."""
        return self.r[rows] / (1 - self.q[rows]).clamp(min=SINGULAR)

    def add(self, i: int) -> None:
        """Add the vector of row i to M."""
        self._change(i, 1.0)

    def remove(self, i: int) -> None:
        """Take the vector of row i out of M."""
        self._change(i, -1.0)

    def keep(self, rows: list[int]) -> None:
        """Forget all other vectors: from here on, row i is rows[i]. F stays that of the pool."""
        self.x, self.q, self.r = self.x[rows], self.q[rows], self.r[rows]

    def trace(self) -> float:
        """Return tr(M^-1 F), what is left unknown."""
        return float((self.inverse * self.target).sum())

    def _change(self, i: int, sign: float) -> None:
        a = self.inverse @ self.x[i]
        b = self.inverse @ (self.target @ a)
        c = max(float(1 + sign * self.q[i]), SINGULAR)
        u, v = self.x @ a, self.x @ b
        # (M^-1 - s a a^T / c) F (M^-1 - s a a^T / c), seen from each vector
        self.r = (self.r - 2 * sign * u * v / c + (a @ self.target @ a) * (u / c).square()).clamp(
            min=0
        )
        self.q = (self.q - sign * u.square() / c).clamp(min=0)
        self.inverse.addr_(a, a, alpha=-sign / c)


def forward_backward(design: RankOneDesign, budget: int) -> list[int]:
    """Return `budget` positions: forward to twice as many, then back. Ties go to the smaller one.

    The design holds M of the batch afterwards.
    """
    positions: list[int] = []
    for _ in range(min(2 * budget, len(design.x))):
        gains = design.gains()
        gains[positions] = -torch.inf
        positions.append(int(gains.argmax()))
        design.add(positions[-1])
    design.keep(positions)
    left = list(range(len(positions)))
    while len(left) > budget:
        # Of equal ones the last chosen goes, so that ties stay with the smaller id.
        place = len(left) - 1 - int(design.losses(left).flip(0).argmin())
        design.remove(left.pop(place))
    return [positions[i] for i in left]
