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


class Family(Protocol):
    """Vectors g_1 .. g_n, known by their inner products."""

    def squared_norms(self) -> Tensor:
        """Return the squared norms |g_i|^2, (n,)."""
        ...

    def products(self, i: int) -> Tensor:
        """<g_j, g_i> for every j: (n,)."""
        ...


@dataclass(frozen=True)
class Rows:
    """The vectors themselves. x: (n, d)."""

    x: Tensor

    def squared_norms(self) -> Tensor:
        """Return the squared norms |g_i|^2, (n,)."""
        return self.x.square().sum(dim=1)

    def products(self, i: int) -> Tensor:
        """<g_j, g_i> for every j: (n,)."""
        return self.x @ self.x[i]


@dataclass(frozen=True)
class OuterProducts:
    """The vectors g_i = a_i h_i^T. a: (n, C), h: (n, d)."""

    a: Tensor
    h: Tensor

    def squared_norms(self) -> Tensor:
        """Return the squared norms |g_i|^2, (n,)."""
        return self.a.square().sum(dim=1) * self.h.square().sum(dim=1)

    def products(self, i: int) -> Tensor:
        """<g_j, g_i> for every j: (n,)."""
        return (self.a @ self.a[i]) * (self.h @ self.h[i])


def k_means_plus_plus(vectors: Family, budget: int, rng: torch.Generator) -> list[int]:
    """Distinct seeds: the longest vector, then each at random in proportion to its squared
    distance to the nearest seed (Arthur and Vassilvitskii 2007).

    Where every vector left equals a seed, the rest is drawn uniformly.
    """
    norms = vectors.squared_norms()
    scale = float(norms.max())
    first = int(norms.argmax())
    seeds = [first]
    nearest = torch.full_like(norms, torch.inf)
    free = torch.ones(len(norms), dtype=torch.bool)
    for _ in range(1, budget):
        free[seeds[-1]] = False
        squared_distances = norms + norms[seeds[-1]] - 2 * vectors.products(seeds[-1])
        # What the subtraction leaves of equal vectors is rounding, not distance.
        squared_distances[squared_distances < 1e-6 * scale] = 0
        nearest = torch.minimum(nearest, squared_distances)
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
