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
from upslope.posterior import margin
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.distances import BLOCK, distance_blocks, normalise
from upslope.strategies.features import Features, Steps, features_need
from upslope.strategies.posteriors import posterior_need

RESOLUTION = 0.05
"""Width at which the bisection of a radius ends, between unit vectors."""


@dataclass(frozen=True)
class DCoM(QueryStrategy):
    """Density of the uncovered and margin, weighed by how much the labels cover."""

    name: ClassVar[str] = "dcom"
    reference: ClassVar[str] = "Mishal and Weinshall 2024 (arXiv 2407.01804)"
    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    cost: ClassVar[str] = "(n + m) n d, again for each sample chosen n d; memory n d"
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
        every = torch.cat([x, y])
        classes = torch.cat([p, pool.labelled_signal(p_need).float()]).argmax(dim=1)
        is_near = _find_covered(every, y, torch.full((len(y),), self.delta))
        radii = self.radii(every, y, classes, pool.labels, is_near)
        # No ball is larger than delta, so that what is beyond stays uncovered.
        is_covered = is_near.index_put(
            (is_near.nonzero().flatten(),), _find_covered(every[is_near], y, radii)
        )
        share = float(is_covered.float().mean())
        weight = competence(share, self.slope, self.centre)
        unsure = _scale(1 - margin(p)) if p.shape[1] > 1 else torch.zeros(len(p))
        radius = float(radii.mean()) if len(radii) else self.delta
        density = _uncovered_neighbours(x, every, is_covered, radius)

        squares = every.square().sum(dim=1)
        scores: Tensor | None = None
        positions: list[int] = []
        for _ in range(budget):
            mixture = weight * unsure + (1 - weight) * _scale(density)
            scores = mixture.clone() if scores is None else scores
            mixture[positions] = -torch.inf
            best = int(mixture.argmax())
            positions.append(best)
            place = slice(best, best + 1)
            near = _squares_to(every, squares, x[place], squares[place])[:, 0]
            within = near < radius**2
            new = (within & ~is_covered).nonzero().flatten()
            for part in torch.split(new, max(1, BLOCK // len(x))) if len(new) else ():
                near = _squares_to(x, squares[: len(x)], every[part], squares[part])
                density -= (near < radius**2).sum(dim=1)
            is_covered[new] = True
        return Choice(
            positions, scores, {"coverage": share, "competence": weight, "radius": radius}
        )

    def radii(
        self,
        every: Tensor,
        y: Tensor,
        classes: Tensor,
        labels: Tensor | None,
        is_near: Tensor,
    ) -> Tensor:
        """The radius of the ball of each labelled sample: (m,).

        every: (n + m, d); y: (m, d), labelled; classes: (n + m,), predicted; labels: (m,);
        is_near: (n + m,), whether balls of radius delta cover it.
        """
        if not len(y):
            return torch.empty(0)
        if labels is None or len(labels) != len(y):
            raise SelectionError(
                f"Expected one class for each of the {len(y)} labelled samples, which decides how "
                "far their balls reach, but the task's labels are of another kind. Take u-herding."
            )
        threshold = 0.2 * float(is_near.float().mean()) + 0.4
        radii = torch.empty(len(y))
        for rows, squares in distance_blocks(y, every):
            distances = squares.sqrt()
            same = classes == labels[rows, None]
            low, high = (
                torch.zeros(len(squares)),
                torch.full((len(squares),), self.delta),
            )
            for _ in range(math.ceil(math.log2(self.delta / RESOLUTION))):
                middle = (low + high) / 2
                within = distances < middle[:, None]
                pure = (within & same).sum(dim=1) >= threshold * within.sum(dim=1)
                low, high = torch.where(pure, middle, low), torch.where(pure, high, middle)
            radii[rows] = (low + high) / 2
        return radii


def competence(coverage: float, slope: float, centre: float) -> float:
    """Return the weight of the margin: a logistic function that is 1 where all is covered."""
    whole = 1 + math.exp(-slope * (1 - centre))
    return whole / (1 + math.exp(-slope * (coverage - centre)))


def _find_covered(every: Tensor, y: Tensor, radii: Tensor) -> Tensor:
    """Which rows of `every` lie within the ball of a row of y: (len(every),) booleans."""
    is_covered = torch.zeros(len(every), dtype=torch.bool)
    for rows, squares in distance_blocks(y, every):
        is_covered |= (squares < radii[rows, None].square()).any(dim=0)
    return is_covered


def _uncovered_neighbours(x: Tensor, every: Tensor, is_covered: Tensor, radius: float) -> Tensor:
    """How many uncovered rows of `every` lie within `radius` of each row of x: (len(x),)."""
    counts = torch.zeros(len(x))
    for rows, squares in distance_blocks(x, every[~is_covered]):
        counts[rows] = (squares < radius**2).sum(dim=1).float()
    return counts


def _squares_to(x: Tensor, of_x: Tensor, y: Tensor, of_y: Tensor) -> Tensor:
    """Squared distances between the rows of x and few of y: (n, k). of_x, of_y: squared lengths."""
    # Few rows on the right take a product a third of the time that they take on the left.
    return torch.addmm(of_y, x, y.T, alpha=-2).add_(of_x[:, None]).clamp_(min=0)


def _scale(values: Tensor) -> Tensor:
    """To between 0 and 1; 0 where all are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else torch.zeros_like(values)
