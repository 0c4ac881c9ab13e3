"""Conjugate gradients for A x = b, where A is known by its products (Hestenes and Stiefel 1952).

Used by the solvers of `influence` and by the influence signal of ISAL, whose right sides may be as
small as gradients of samples that are fitted: `scale_of` brings them to about 1 first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from upslope.errors import InfluenceError

Product = Callable[[Tensor], Tensor]


def descend(
    times: Product,
    x: Tensor,
    residual: Tensor,
    enough: float,
    limit: int,
    precondition: Product = lambda r: r,
) -> tuple[Tensor, int, float | None]:
    """Return one run of the recursion: (x, steps, None).

    It ends where the residual is at most `enough` long, after `limit` steps, or before a direction
    d with d^T A d <= 0: then the third number is d^T A d / d^T d, in place of None.

    times: returns A times a vector. x: (p,) where it begins. residual: (p,) b - A x, not zero.
    precondition: returns M^-1 times a vector, for a positive definite M near A.

    Raises:
        InfluenceError: r^T M^-1 r is not positive.
    """
    r, z = residual, precondition(residual)
    d, rz = z, float(r @ z)
    if rz <= 0:
        raise InfluenceError(
            f"Expected a positive definite preconditioner but r^T M^-1 r is {rz:.1e}."
        )
    for step in range(limit):
        ad = times(d)
        curve = float(d @ ad)
        if curve <= 0:
            return x, step + 1, curve / float(d @ d)
        x = x + (rz / curve) * d
        r = r - (rz / curve) * ad
        if float(r.norm()) <= enough:
            return x, step + 1, None
        z = precondition(r)
        rz, last = float(r @ z), rz
        d = z + (rz / last) * d
    return x, limit, None


def scale_of(b: Tensor) -> float:
    """Return the power of two next to the largest entry of a vector; 0 where all are zero.

    Divided by it nothing is rounded, and squares stay in the range of the type. b: (p,).
    """
    largest = float(b.abs().max())
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 0.0
