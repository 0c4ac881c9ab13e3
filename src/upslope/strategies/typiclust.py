"""TypiClust: the most typical sample of each cluster that no label speaks for yet (Hacohen 2022).

Labelled samples and candidates are put into min(|L| + K, 500) clusters by k-means on features of
unit length. Clusters are visited by fewest labels, then largest, over and over; from each, the
candidate of highest typicality is taken,

    typicality(x) = 1 / mean distance of x to its k nearest neighbours among the cluster's
    candidates,  k = min(20, half their number).

Clusters of at most 5 samples wait until the others are used up.
TCM (Doucet et al. 2024) starts with TypiClust and goes on with margin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from upslope.options import LATER, Temperature
from upslope.pool import Need, PoolView, Selection, top
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.clustering import clusters
from upslope.strategies.cover import FINE
from upslope.strategies.distances import distance_blocks, normalise, squared_distances
from upslope.strategies.features import Features, Steps, features_need
from upslope.strategies.posteriors import uncertainty_need

NEIGHBOURS = 20
SMALL = 5
_SAME = 1e-14  # squared distance of vectors of unit length, less than double precision tells from 0


def typicality(x: Tensor) -> Tensor:
    """1 / mean distance to the min(20, n / 2) nearest others. x: (n, d), returns (n,)."""
    k = min(NEIGHBOURS, len(x) // 2)
    if k == 0:
        return torch.ones(len(x))
    if k == 1:  # two of two or three rows are each other's nearest: as near, whatever rounding says
        exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
        return 1 / (exact.fill_diagonal_(torch.inf).amin(dim=1).float() + 1e-5)
    mean = torch.empty(len(x))
    for rows, squares in distance_blocks(x, x):
        places = torch.arange(rows.start, rows.stop)
        near = _nearest_others(squares, places, k)
        mean[rows] = near.sqrt().mean(dim=1)
        # Of copies and near-copies, inner products in single precision leave rounding alone.
        fine = places[near[:, 0] < FINE]
        if len(fine):
            squares = squared_distances(x[fine].double(), x.double())
            squares[squares < _SAME] = 0.0
            mean[fine] = _nearest_others(squares, fine, k).sqrt().mean(dim=1).float()
    return 1 / (mean + 1e-5)


def _nearest_others(squares: Tensor, places: Tensor, k: int) -> Tensor:
    """The k smallest squared distances of each row, ascending, to others than itself: (b, k).

    squares: (b, n), overwritten. places: (b,) which of the n each row is.
    """
    squares[torch.arange(len(places)), places] = torch.inf
    return squares.topk(k, dim=1, largest=False).values


@dataclass(frozen=True)
class TypiClust(QueryStrategy):
    """Typical samples of clusters without labels."""

    name: ClassVar[str] = "typiclust"
    reference: ClassVar[str] = "Hacohen, Dekel and Weinshall, ICML 2022"
    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    cost: ClassVar[str] = (
        "k-means into k = m + K clusters, k <= 500: 45,000 k d log k; memory 2 (n + m) d"
    )
    best_for: ClassVar[str] = "few labels, on features good without labels"

    max_clusters: Annotated[int, Field(ge=1, description="most clusters")] = 500
    features: Features = None
    steps: Steps = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features, of the labelled set too."""
        return (features_need(self.features, self.steps),)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """The most typical candidate of the next cluster, `budget` times."""
        need = self.needs[0]
        x, y = normalise(pool.signal(need)), normalise(pool.labelled_signal(need))
        k = min(len(y) + budget, self.max_clusters, len(x) + len(y))
        of = clusters(torch.cat([x, y]), k, rng)
        sizes = torch.bincount(of, minlength=k).tolist()
        labels = torch.bincount(of[len(x) :], minlength=k).tolist()
        order = sorted(range(k), key=lambda c: (sizes[c] <= SMALL, labels[c], -sizes[c], c))
        rooms = {c: (of[: len(x)] == c).nonzero().flatten() for c in order}
        large = [c for c in order if sizes[c] > SMALL and len(rooms[c])]
        small = [c for c in order if sizes[c] <= SMALL and len(rooms[c])]
        positions: list[int] = []
        for group in (large, small):
            while group and len(positions) < budget:
                for c in group[: budget - len(positions)]:
                    best = int(typicality(x[rooms[c]]).argmax())
                    positions.append(int(rooms[c][best]))
                    rooms[c] = torch.cat([rooms[c][:best], rooms[c][best + 1 :]])
                group = [c for c in group if len(rooms[c])]
        return Choice(positions)


@dataclass(frozen=True)
class TCM(TypiClust):
    """TypiClust while labels are few, margin from then on."""

    name: ClassVar[str] = "tcm"
    reference: ClassVar[str] = "Doucet et al. 2024 (TypiClust to Margin)"
    best_for: ClassVar[str] = "from no labels to many"

    switch: Annotated[int, Field(ge=0, description="labels from which margin is used")] = 1000
    temperature: Temperature = field(default=1.0, metadata=LATER)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features, of the labelled set too, and the margin."""
        return (*super().needs, uncertainty_need("margin", self.temperature))

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:
        """By TypiClust below `switch` labels, by margin from there on."""
        if len(pool.labelled) < self.switch:
            return super().select(pool, budget, rng)
        self.check(pool, budget)
        return top(pool, pool.signal(self.needs[1]), budget)
