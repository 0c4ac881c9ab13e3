"""Spread over gradients: k-means++ seeding, on outer products never written out or plain vectors.

The gradient of a loss by the last weight matrix is g = a h^T, where a is its gradient by the
logits (C) and h the penultimate features (d). Then <g, g'> = <a, a'> <h, h'>, so that

    ||g - g'||^2 = |a|^2 |h|^2 + |a'|^2 |h'|^2 - 2 <a, a'> <h, h'>

takes C + d multiplications where the vectors would take C d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from upslope.strategies.projection import Projection

SHARE = 1 / 8
"""Most of all vectors whose distances are computed apart: beyond, those of all take less time."""
_GROUP = 8  # rows that the kernels of matrix products take together, or a multiple of it
_ROUNDING = 1e-6  # relative; more than sums of squared norms lose
_SAME = 1e-6
"""Squared distance, by the squared norms of both vectors, below which they are one: what the
subtraction leaves of equal ones is rounding. By those of all vectors, one that is much longer than
the others would make all these one."""


class Family(Protocol):
    """Vectors g_1 .. g_n, known by their inner products."""

    def squared_norms(self) -> Tensor:
        """Return the squared norms |g_i|^2, (n,)."""
        ...

    def products(self, i: int, rows: Tensor | None = None) -> Tensor:
        """Return <g_j, g_i> for every j, or for those at `rows`."""
        ...

    def features(self) -> Tensor:
        """Return the rows that make products costly, (n, d)."""
        ...

    def upper_bounds(self, i: int, projection: Projection) -> Tensor:
        """Return numbers that <g_j, g_i> does not exceed, (n,). projection: of `features`."""
        ...


@dataclass(frozen=True)
class Rows:
    """The vectors themselves. x: (n, d)."""

    x: Tensor

    def squared_norms(self) -> Tensor:
        """Return the squared norms |g_i|^2, (n,)."""
        return self.x.square().sum(dim=1)

    def products(self, i: int, rows: Tensor | None = None) -> Tensor:
        """Return <g_j, g_i> for every j, or for those at `rows`."""
        return (self.x if rows is None else self.x[rows]) @ self.x[i]

    def features(self) -> Tensor:
        """Return the vectors themselves, (n, d)."""
        return self.x

    def upper_bounds(self, i: int, projection: Projection) -> Tensor:
        """Return numbers that <g_j, g_i> does not exceed, (n,)."""
        estimates, errors = projection.bounds(i)
        return estimates.add_(errors)


@dataclass(frozen=True)
class OuterProducts:
    """The vectors g_i = a_i h_i^T. a: (n, C), h: (n, d)."""

    a: Tensor
    h: Tensor

    def squared_norms(self) -> Tensor:
        """Return the squared norms |g_i|^2, (n,)."""
        return self.a.square().sum(dim=1) * self.h.square().sum(dim=1)

    def products(self, i: int, rows: Tensor | None = None) -> Tensor:
        """Return <g_j, g_i> for every j, or for those at `rows`."""
        a, h = (self.a, self.h) if rows is None else (self.a[rows], self.h[rows])
        return (a @ self.a[i]) * (h @ self.h[i])

    def features(self) -> Tensor:
        """Return h, which is wider than a."""
        return self.h

    def upper_bounds(self, i: int, projection: Projection) -> Tensor:
        """Return numbers that <g_j, g_i> does not exceed, (n,)."""
        of_a = self.a @ self.a[i]
        estimates, errors = projection.bounds(i)
        return estimates.mul(of_a).add_(of_a.abs_().mul_(errors))


class Screening:
    """Tells which vectors may lie nearer to a new centre than to the nearest one so far.

    vectors: n of them. norms: (n,) their squared norms. uses: how many centres will come.
    """

    def __init__(self, vectors: Family, norms: Tensor, uses: int) -> None:
        x = vectors.features()
        self.vectors, self.projection = vectors, Projection.of(x, uses)
        # Distances themselves are rounded: bounds give way by more than the products can miss.
        slack = 4 * (x.shape[1] + 8) * torch.finfo(norms.dtype).eps
        self.lengths = (slack * norms).sqrt_()
        self.norms = norms * (1 - _ROUNDING)

    def rows(self, i: int, nearest: Tensor) -> Tensor | None:
        """Return the rows that may lie nearer to vector i; None where all are to be compared.

        i: the new centre. nearest: (n,) squared distances to the nearest centre so far. Kernels
        add up rows that do not fill a group in another order, so rows may come more than once.
        """
        if self.projection is None:
            return None
        upper = self.vectors.upper_bounds(i, self.projection).to(nearest.dtype)
        upper.addcmul_(self.lengths, self.lengths[i]).mul_(2)
        rows = (upper > (self.norms - nearest).add_(self.norms[i])).nonzero().flatten()
        if len(rows) > SHARE * len(nearest):
            return None
        return torch.cat([rows, rows[:1].expand(-len(rows) % _GROUP)])


def k_means_plus_plus(vectors: Family, budget: int, rng: torch.Generator) -> list[int]:
    """Distinct seeds: the longest vector, then each at random in proportion to its squared
    distance to the nearest seed (Arthur and Vassilvitskii 2007).

    Where every vector left equals a seed, the rest is drawn uniformly.
    """
    norms = vectors.squared_norms()
    screening = Screening(vectors, norms, budget)
    seeds = [int(norms.argmax())]
    nearest = torch.full_like(norms, torch.inf)
    free = torch.ones(len(norms), dtype=torch.bool)
    for _ in range(1, budget):
        free[seeds[-1]] = False
        rows = screening.rows(seeds[-1], nearest)
        part = slice(None) if rows is None else rows
        products = vectors.products(seeds[-1], rows)
        both_norms = norms[part] + norms[seeds[-1]]
        squared_distances = both_norms - 2 * products
        squared_distances[squared_distances < _SAME * both_norms] = 0
        nearest[part] = torch.minimum(nearest[part], squared_distances)
        weights = torch.where(free, nearest, 0.0).double()
        if not weights.any():
            weights = free.double()
        seeds.append(draw(weights, rng))
    return seeds


def draw(weights: Tensor, rng: torch.Generator) -> int:
    """A position, at random in proportion to its weight >= 0, never one of weight 0."""
    cumulative = weights.cumsum(dim=0)
    point = torch.rand(1, generator=rng, dtype=torch.float64) * cumulative[-1]
    position = int(torch.searchsorted(cumulative, point, right=True))
    # Rounding may carry the point onto the end: then the last position of any weight is meant.
    last = int(weights.nonzero()[-1])
    return min(position, last)
