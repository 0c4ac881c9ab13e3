"""DCoM: density of what no label covers, until enough is covered, then the margin.

Every labelled sample l has a ball of radius delta_l <= delta around it, over features of unit
length: the largest found by bisection in whose interior at least a share

    0.2 coverage + 0.4                  (coverage by balls of radius delta)

of the labelled samples and candidates are predicted to be of the class of l. With C the share of
labelled samples and candidates that the balls cover,

    competence = (1 + exp(-k (1 - a))) / (1 + exp(-k (C - a)))

and, K times, the candidate of largest

    competence u(x) + (1 - competence) density(x)

is taken: u = 1 - (p_(1) - p_(2)), and the density is the number of samples not covered yet within
the mean radius of x, both scaled to between 0 and 1. What a choice covers is covered from then on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from upslope.errors import SelectionError
from upslope.options import Temperature
from upslope.pool import Need, PoolView
from upslope.posterior import closeness
from upslope.strategies.balls import Surroundings, UncoveredDensity
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.distances import normalise
from upslope.strategies.features import Features, Steps, features_need
from upslope.strategies.posteriors import posterior_need

RESOLUTION = 0.05
"""Width at which the bisection of a radius ends, between unit vectors."""
_LARGEST = 700.0  # of which double precision has the exponential


@dataclass(frozen=True)
class DCoM(QueryStrategy):
    """Density of the uncovered and margin, weighed by how much the labels cover."""

    name: ClassVar[str] = "dcom"
    reference: ClassVar[str] = "Mishal and Weinshall 2024 (arXiv 2407.01804)"
    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    cost: ClassVar[str] = (
        "m (n + m / 2) d, and u (n - u / 2) d for u candidates that no ball covers, where pairs "
        "within delta are few; memory (n + m) d + 0.7 GB"
    )
    best_for: ClassVar[str] = "from few labels to many, on features good without labels"
    reads_labels: ClassVar[bool] = True

    delta: Annotated[
        float, Field(gt=0, le=2, description="largest radius of a ball, between unit vectors")
    ] = 0.75
    slope: Annotated[float, Field(gt=0, description="k, steepness of the competence")] = 30.0
    centre: Annotated[
        float, Field(gt=0, lt=1, description="a, the coverage at which margin begins to rule")
    ] = 0.9
    temperature: Temperature = 1.0
    features: Features = None
    steps: Steps = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features and posteriors, of the labelled set too."""
        return (
            features_need(self.features, self.steps),
            posterior_need(self.temperature, labelled=True),
        )

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """The best mixture of density and margin, `budget` times; scores are the first mixture."""
        h_need, p_need = self.needs
        x, y = normalise(pool.signal(h_need)), normalise(pool.labelled_signal(h_need))
        p = pool.signal(p_need).float()
        classes = torch.cat([p, pool.labelled_signal(p_need).float()]).argmax(dim=1)
        radii, is_covered = self.balls(x, y, classes, pool.labels)
        share = share_of(is_covered, len(y))
        weight = competence(share, self.slope, self.centre)
        unsure = scale(closeness(p))
        radius = float(radii.mean()) if len(radii) else self.delta
        density = UncoveredDensity(x, is_covered, radius)
        is_free = torch.ones(len(x), dtype=torch.bool)
        scores: Tensor | None = None
        positions: list[int] = []
        for _ in range(budget):
            mixture = weight * unsure + (1 - weight) * scale(density.counts)
            scores = mixture.clone() if scores is None else scores
            best = int(mixture.masked_fill_(~is_free, -torch.inf).argmax())
            positions.append(best)
            is_free[best] = False
            density.take(best)
        return Choice(
            positions, scores, {"coverage": share, "competence": weight, "radius": radius}
        )

    def balls(
        self, x: Tensor, y: Tensor, classes: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The radius of each labelled sample's ball, (m,), and which candidates lie in one, (n,).

        x: (n, d) candidates; y: (m, d), labelled; classes: (n + m,), those predicted;
        labels: (m,).
        """
        if not len(y):
            return torch.empty(0), torch.zeros(len(x), dtype=torch.bool)
        labels = one_label_each(labels, len(y))
        near = Surroundings(
            x, y, classes[: len(x)], classes[len(x) :], labels, self.delta, RESOLUTION
        )
        radii = near.radii(purity(share_of(near.is_near, len(y))))
        return radii, near.covered(radii)


def one_label_each(labels: Tensor | None, labelled: int) -> Tensor:
    """Return the classes of labelled samples, (m,). labelled: how many there are.

    Raises:
        SelectionError: there are none, or not one for each.
    """
    if labels is None or len(labels) != labelled:
        raise SelectionError(
            f"Expected one class for each of the {labelled} labelled samples, which decides how "
            "far their balls reach, but the task's labels are of another kind. Take u-herding."
        )
    return labels


def share_of(is_covered: Tensor, labelled: int) -> float:
    """Return the share of candidates and labelled samples that is covered: the latter all are, by
    their own balls. is_covered: (n,). labelled: how many there are."""
    return (int(is_covered.sum()) + labelled) / (len(is_covered) + labelled)


def purity(coverage: float) -> float:
    """Return the least share of one class in a ball. coverage: the share that balls of radius delta
    cover."""
    return 0.2 * coverage + 0.4


def competence(coverage: float, slope: float, centre: float) -> float:
    """Return the weight of the margin: a logistic function that is 1 where all is covered."""
    whole = 1 + math.exp(-slope * (1 - centre))
    return whole / (1 + math.exp(min(slope * (centre - coverage), _LARGEST)))


def scale(values: Tensor) -> Tensor:
    """Return values between 0 and 1, in double precision; 0 where all are equal. values: (n,).

    While little is covered, margins weigh 10^-12 beside densities, of which many are equal.
    """
    values = values.double()
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else torch.zeros_like(values)
