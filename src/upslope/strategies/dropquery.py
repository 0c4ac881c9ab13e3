"""DropQuery: the centres of the samples whose prediction does not survive dropped features.

On frozen features, with T = 3 random masks that drop 3 of 4 features in front of the head, a sample
is unsure if its prediction changes in more than T / 2 masks; that threshold is lowered until 25 K
samples are unsure, or to 0. The features of these, of unit length, are clustered by k-means into K,
and the sample nearest to each centroid is taken. Before there is a label, every sample
counts as unsure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.clustering import central_rows
from upslope.strategies.distances import normalise

MOST_CANDIDATES = 25
ALL_UNSURE = -1
"""A threshold that every number of passes exceeds."""


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
        is_unsure = changes > self._threshold(pool, budget)
        unsure = is_unsure.nonzero().flatten()
        if len(unsure) < budget:
            sure = set(range(len(pool))) - set(unsure.tolist())
            order = torch.randperm(len(pool), generator=rng).tolist()
            rest = [i for i in order if i in sure][: budget - len(unsure)]
            return Choice(unsure.tolist() + rest, changes)
        return Choice(unsure[central_rows(x[unsure], budget, rng)].tolist(), changes)

    def in_cells(
        self, changes: Iterable[Tensor], budget: int, *, has_labels: bool
    ) -> DropQueryInCells:
        """Return the strategy that chooses within the cells of a pool, by the pool's threshold.

        changes: the passes in which predictions change, of all candidates, in parts. budget: of
        all cells together. has_labels: whether anything is labelled yet.
        """
        threshold = self._lower(changes, budget) if has_labels else ALL_UNSURE
        return DropQueryInCells(self.passes, self.rate, threshold)

    def _threshold(self, pool: PoolView, budget: int) -> int:
        """In how many passes the prediction for a sample may change that is not unsure."""
        if not len(pool.labelled):
            return ALL_UNSURE
        return self._lower([pool.signal(self.needs[1])], budget)

    def _lower(self, changes: Iterable[Tensor], budget: int) -> int:
        counts = torch.zeros(self.passes // 2 + 1, dtype=torch.int64)
        for part in changes:
            counts += torch.stack([(part > t).sum() for t in range(len(counts))])
        threshold = self.passes // 2
        while threshold and int(counts[threshold]) < MOST_CANDIDATES * budget:
            threshold -= 1
        return threshold


@dataclass(frozen=True)
class DropQueryInCells(DropQuery):
    """DropQuery in a cell of a pool, where as many samples are unsure as in the whole pool."""

    threshold: int = ALL_UNSURE

    def log_weights(self, pool: PoolView) -> Tensor:
        """Return log 1 for samples that are unsure, log 0 for others, (n,)."""
        return (pool.signal(self.needs[1]) > self.threshold).float().log()

    def _threshold(self, pool: PoolView, budget: int) -> int:  # noqa: ARG002
        return self.threshold
