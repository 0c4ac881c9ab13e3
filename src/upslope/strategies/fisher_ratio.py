"""The largest eigenvalue of M^-1 F, from above, which bounds how much a sample lowers BAIT's trace.

With mu that eigenvalue, X = M^-1 F M^-1 <= mu M^-1, so that the gain of a sample V is

    tr( (1 + Q)^-1 R ) <= mu tr( (1 + Q)^-1 Q ),    Q = V^T M^-1 V,   R = V^T X V,

and as M grows both mu and Q fall: what was computed of them earlier stays a bound.

The Lanczos method from a random vector finds an eigenvalue from below. Of a symmetric matrix of n
rows, after k rounds, it falls short of (1 - e) mu with a probability of at most

    1.648 sqrt(n) exp( -sqrt(e) (2 k - 1) )

(Kuczynski and Wozniakowski 1992), if the vector has no preferred direction. M^-1 F is symmetric as
M measures lengths, where such a vector is M^-1 m, m from the normal distribution of covariance M.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ROUNDS = 32
"""Of the Lanczos method: two products of a matrix and a vector each."""
RISK = 1e-9
"""The probability with which the eigenvalue may be larger than the number returned."""
_ROUNDING = 1e-12  # relative to the largest eigenvalue so far: what is left is rounding


def largest_ratio(
    solve: Callable[[Tensor], Tensor], multiply: Callable[[Tensor], Tensor], start: Tensor
) -> float:
    """Return a number that no eigenvalue of M^-1 F exceeds, but with a probability of `RISK`.

    solve: M^-1 times a vector. multiply: F times a vector. start: (n,) from the normal distribution
    of covariance M.
    """
    # The basis of Lanczos and M times it: M is never multiplied, as M (M^-1 y) is y.
    q, of_q = solve(start), start
    basis: list[Tensor] = []
    of_basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    length = float(q @ of_q)
    rounds = min(ROUNDS, len(start))
    for _ in range(rounds):
        if not length > 0:
            break
        q, of_q = q / math.sqrt(length), of_q / math.sqrt(length)
        basis.append(q)
        of_basis.append(of_q)
        of_next = multiply(q)
        following = solve(of_next)
        diagonal.append(float(q @ of_next))
        # Against all of the basis, as rounding brings its first vectors back.
        for a, of_a in zip(basis, of_basis, strict=True):
            overlap = float(of_a @ following)
            following, of_next = following - overlap * a, of_next - overlap * of_a
        length = float(following @ of_next)
        if length <= (_ROUNDING * max(diagonal)) ** 2:
            break
        beside.append(math.sqrt(length))
        q, of_q = following, of_next
    if not diagonal:
        return 0.0
    size = len(diagonal)
    projection = torch.diag(torch.tensor(diagonal, dtype=start.dtype))
    for k, value in enumerate(beside[: size - 1]):
        projection[k, k + 1] = projection[k + 1, k] = value
    ratio = float(torch.linalg.eigvalsh(projection)[-1])
    if size < ROUNDS:  # all directions that F has were seen
        return ratio * (1 + 1e-6)
    root = math.log(1.648 * math.sqrt(len(start)) / RISK) / (2 * size - 1)
    return ratio / (1 - root**2)
