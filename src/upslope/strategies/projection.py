"""Bounds on the inner products of vectors, from a few coordinates of each.

With z = P^T x the coordinates of x in an orthonormal basis P of `WIDTH` directions, and t the
length of what they leave out, t^2 = |x|^2 - |z|^2, Cauchy and Schwarz give

    | <x, y> - <z_x, z_y> | <= t_x t_y.

P spans the directions in which the vectors are long, as principal components do. A search for the
nearest centre compares a new centre with most samples by these bounds alone, which takes an eighth
of the arithmetic at 512 features, and computes the distances of those that may lie nearer to it.
What it finds does not depend on the bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 64
"""Directions: more make bounds tighter and slower; `benchmarks/selection.py` times both."""
SAMPLE = 2048
"""Vectors from which the directions are learnt."""
_ROWS = 4096  # rows that are projected at once
_SLACK = 1e-5  # more than single precision loses in WIDTH products, relative to the lengths


class Projection:
    """Bounds on <x_j, x_i> for every j. x: (n, d)."""

    def __init__(self, x: Tensor) -> None:
        basis = _directions(x)
        self.z = x.new_empty(len(x), basis.shape[1], dtype=torch.float32)
        self.rest = x.new_empty(len(x), dtype=torch.float32)
        for start in range(0, len(x), _ROWS):
            part = x[start : start + _ROWS].double()
            z, squares = part @ basis, part.square().sum(dim=1)
            self.z[start : start + _ROWS] = z
            rest = (squares - z.square().sum(dim=1)).clamp_(min=0)
            self.rest[start : start + _ROWS] = (rest + _SLACK * squares).sqrt_()

    @classmethod
    def of(cls, x: Tensor, uses: int) -> Projection | None:
        """Return bounds for vectors, None where they would cost more than they save.

        x: (n, d). uses: how many times they will be asked for.
        """
        return cls(x) if x.shape[1] > 2 * WIDTH and uses > WIDTH else None

    def bounds(self, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return estimates of <x_i, x_j> for every j and by how much they may be wrong, (..., n).

        i: which vector, or which (k,).
        """
        return self.z[i] @ self.z.T, self.rest[i][..., None] * self.rest


def _directions(x: Tensor) -> Tensor:
    """Return nearly the principal directions about 0 as columns, (d, WIDTH), double precision."""
    # Any basis gives bounds that hold, so the directions need no draw of the caller's.
    rng = torch.Generator().manual_seed(0)
    sample = x[:: max(1, len(x) // SAMPLE)].double()
    basis = torch.randn(x.shape[1], min(WIDTH, x.shape[1]), generator=rng, dtype=torch.float64)
    for _ in range(3):  # power iterations: long directions grow in it
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    return basis
