"""Coverage: label the samples that stand for the others best.

Four strategies are one greedy algorithm. With a similarity k(i, j) >= 0, a weight w_i of each
candidate and the labelled set L, take K times the candidate x of largest gain

    sum_i w_i [ k(i, x) - max_{l in L + s} k(i, l) ]_+

where s is what was taken before. They differ in k and w, over features of unit length, distance d:

    prob-cover          k = 1 if d <= delta                      w = 1             (Yehuda 2022)
    max-herding         k = exp(-(d / h)^2)                      w = 1             (Bae 2024)
    u-herding           k = exp(-(d / h)^2), h from L            w = uncertainty   (Bae 2025)
    facility-location   k = cosine, where positive               w = 1             (Wei 2015)

The gain is submodular, so it is recomputed lazily; `cover` says how, and no n x n matrix is ever
held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from upslope.options import Temperature
from upslope.pool import Need, PoolView
from upslope.posterior import closeness
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.cover import Similarity, cover
from upslope.strategies.distances import normalise
from upslope.strategies.features import Features, Steps, features_need
from upslope.strategies.kernel_width import smallest_distance
from upslope.strategies.posteriors import posterior_need

UNDERFLOW = 104.0
"""Of x beyond this, exp(-x) is 0 in single precision."""
SURE = 1e-12
"""Weight of candidates that are sure, in a cell of no others: its own choices come last."""


@dataclass(frozen=True)
class Gaussian:
    """exp(-(d / width)^2) of distances d."""

    width: float

    @property
    def scale(self) -> float:
        """Return the distance at which the similarity has fallen by much."""
        return self.width

    def __call__(self, squares: Tensor) -> Tensor:
        """Return the similarities, in place."""
        return squares.div_(-(self.width**2)).exp_()

    def reach(self, nearest: Tensor) -> Tensor:
        """As far as the nearest label, and no farther than the similarity is above 0."""
        return nearest.clamp(max=UNDERFLOW * self.width**2)


@dataclass(frozen=True)
class Ball:
    """1 within the radius, 0 outside."""

    radius: float

    @property
    def scale(self) -> float:
        """Return the distance at which the similarity has fallen by much."""
        return self.radius

    def __call__(self, squares: Tensor) -> Tensor:
        """Return the similarities at these squared distances."""
        return (squares <= self.radius**2).to(squares.dtype)

    def reach(self, nearest: Tensor) -> Tensor:
        """As far as the radius, the radius included, where no label is within it."""
        square = torch.tensor(self.radius**2, dtype=nearest.dtype)
        beyond = square.nextafter(torch.full_like(square, torch.inf))
        return torch.where(nearest <= square, 0.0, beyond)


class Cosine:
    """The cosine, 1 - d^2 / 2 between unit vectors, where positive."""

    scale = 1.0

    def __call__(self, squares: Tensor) -> Tensor:
        """Return the similarities, in place."""
        return squares.div_(-2).add_(1).clamp_(min=0)

    def reach(self, nearest: Tensor) -> Tensor:
        """As far as the nearest label, and no farther than a right angle."""
        return nearest.clamp(max=2)


@dataclass(frozen=True)
class CoverageStrategy(QueryStrategy):
    """The greedy algorithm; a similarity and a weight make a strategy of it."""

    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    cost: ClassVar[str] = "n (n / 2 + m) d, without labels n^2 d; memory n d + 0.7 GB"
    best_for: ClassVar[str] = "small budgets, on features good without labels"

    features: Features = None
    steps: Steps = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features, of the labelled set too."""
        return (features_need(self.features, self.steps),)

    def similarity(self, labelled: Tensor) -> Similarity:
        """k, from squared distances, elementwise; `labelled`: (m, d), the labelled features."""
        raise NotImplementedError

    def weights(self, pool: PoolView) -> Tensor:
        """Return the weight w of each candidate, (n_candidates,)."""
        return torch.ones(len(pool))

    def in_cells(self, labelled: Tensor) -> CoverageStrategy:  # noqa: ARG002
        """Return the strategy that chooses within the cells of a pool, whose gains are compared.

        labelled: (m, d), the features of all labelled samples of the pool.
        """
        return self

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """The candidate of largest gain, `budget` times; scores are the gains before the first."""
        need = self.needs[0]
        x, y = normalise(pool.signal(need)), normalise(pool.labelled_signal(need))
        w = self.weights(pool)
        positions, gains, scores, share = cover(x, y, w, self.similarity(y), budget)
        return Choice(positions, scores, {"coverage": share}, gains)


@dataclass(frozen=True)
class ProbCover(CoverageStrategy):
    """The most samples within a ball of given radius around a label."""

    name: ClassVar[str] = "prob-cover"
    reference: ClassVar[str] = "Yehuda et al., NeurIPS 2022"

    delta: Annotated[
        float, Field(gt=0, le=2, description="radius of the balls, between unit vectors")
    ] = 0.75

    def similarity(self, labelled: Tensor) -> Similarity:  # noqa: ARG002
        """1 within the ball, 0 outside."""
        return Ball(self.delta)


@dataclass(frozen=True)
class MaxHerding(CoverageStrategy):
    """The best generalised coverage under a Gaussian kernel."""

    name: ClassVar[str] = "max-herding"
    reference: ClassVar[str] = "Bae et al., ECCV 2024"

    width: Annotated[float, Field(gt=0, description="h of the kernel, between unit vectors")] = 1.0

    def similarity(self, labelled: Tensor) -> Similarity:  # noqa: ARG002
        """Return the similarity exp(-(d / h)^2) of distances d."""
        return Gaussian(self.width)


@dataclass(frozen=True)
class UHerding(CoverageStrategy):
    """Coverage of the uncertain, under a kernel that narrows as labels come."""

    name: ClassVar[str] = "u-herding"
    reference: ClassVar[str] = "Bae et al., ICLR 2025"
    best_for: ClassVar[str] = "small to medium budgets"

    temperature: Temperature = "fitted"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features, of the labelled set too, and posteriors."""
        return (features_need(self.features, self.steps), posterior_need(self.temperature))

    def similarity(self, labelled: Tensor) -> Similarity:
        """exp(-(d / h)^2), h the smallest distance between labelled samples; 1 before there are
        two that differ."""
        return Gaussian(smallest_distance(labelled))

    def weights(self, pool: PoolView) -> Tensor:
        """1 - (p_(1) - p_(2)) of the tempered posterior; 1 for all where it is 0 for all, and
        before there is a label."""
        p = pool.signal(self.needs[1]).float()
        if p.shape[1] < 2 or not len(pool.labelled):
            return torch.ones(len(p))
        u = closeness(p)
        return u if bool(u.any()) else torch.ones(len(p))

    def in_cells(self, labelled: Tensor) -> CoverageStrategy:
        """Return it with the kernel of the whole pool; itself before there is a label."""
        if not len(labelled):
            return self
        width = smallest_distance(normalise(labelled))
        return UHerdingInCells(self.features, self.steps, self.temperature, width)


@dataclass(frozen=True)
class UHerdingInCells(UHerding):
    """UHerding in a cell of a pool that has labels, whether or not some lie near the cell."""

    width: Annotated[float, Field(gt=0, description="h, of the pool")] = 1.0

    def similarity(self, labelled: Tensor) -> Similarity:  # noqa: ARG002
        """Return the similarity exp(-(d / h)^2) of distances d."""
        return Gaussian(self.width)

    def weights(self, pool: PoolView) -> Tensor:
        """1 - (p_(1) - p_(2)); as good as nothing for all of a cell where it is 0 for all."""
        u = closeness(pool.signal(self.needs[1]).float())
        return u if bool(u.any()) else torch.full_like(u, SURE)


@dataclass(frozen=True)
class FacilityLocation(CoverageStrategy):
    """Every sample served by its most similar label."""

    name: ClassVar[str] = "facility-location"
    reference: ClassVar[str] = "Wei, Iyer and Bilmes, ICML 2015"

    def similarity(self, labelled: Tensor) -> Similarity:  # noqa: ARG002
        """The cosine, where positive."""
        return Cosine()
