"""DropQuery: the centres of the samples whose prediction does not survive dropped features.

On frozen features, with T = 3 random masks that drop 3 of 4 features in front of the head, a sample
is unsure if its prediction changes in more than T / 2 masks; that threshold is lowered until 25 K
samples are unsure, or to 0. The features of these, of unit length, are clustered by k-means into K,
and the sample nearest to each centroid is taken. Before there is a label, every sample
counts as unsure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.clustering import central_rows
from upslope.strategies.distances import normalise

MOST_CANDIDATES = 25


@dataclass(frozen=True)
class DropQuery(QueryStrategy):
    """Centres of clusters of the samples whose prediction changes under dropout of features."""

    name: ClassVar[str] = "dropquery"
    reference: ClassVar[str] = "Gupte et al., TMLR 2024 (arXiv 2401.14555)"
    signal_cost: ClassVar[str] = "one forward per candidate, and T of the head"
    cost: ClassVar[str] = "k-means into K clusters; memory n d"
    best_for: ClassVar[str] = "frozen pretrained features"

    passes: Annotated[int, Field(ge=1, description="T, random masks")] = 3
    rate: Annotated[float, Field(gt=0, lt=1, description="share of the features dropped")] = 0.75

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features, and in how many passes the prediction changes without most of them."""
        changes = Need.of("feature-dropout", passes=self.passes, rate=self.rate, seed=0)
        return (Need.of("features"), changes)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """The nearest to each centroid; scores are the passes in which the prediction changes."""
        x, changes = normalise(pool.signal(self.needs[0])), pool.signal(self.needs[1]).float()
        threshold = self.passes // 2
        while threshold and int((changes > threshold).sum()) < MOST_CANDIDATES * budget:
            threshold -= 1
        unsure = (changes > threshold).nonzero().flatten()
        if not len(pool.labelled):
            unsure = torch.arange(len(pool))
        if len(unsure) < budget:
            sure = set(range(len(pool))) - set(unsure.tolist())
            order = torch.randperm(len(pool), generator=rng).tolist()
            rest = [i for i in order if i in sure][: budget - len(unsure)]
            return Choice(unsure.tolist() + rest, changes)
        return Choice(unsure[central_rows(x[unsure], budget, rng)].tolist(), changes)
