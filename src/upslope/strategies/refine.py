"""REFINE: the pool is cleaned by an ensemble of strategies, round by round, and then covered.

In each round every strategy of the ensemble chooses its share of about 100 batches of K samples,
each from a random subset of the pool; the union of all batches is the pool of the next round,
10,000 at most. Subsets hold 5,000 samples in the first round, and 0.4 of the pool, K at least, in
later ones. From what is left after 5 rounds UHerding chooses the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from upslope.options import Temperature
from upslope.pool import Need, PoolView
from upslope.strategies.badge import Badge
from upslope.strategies.base import Choice, QueryStrategy, select_among
from upslope.strategies.binary_bait import BinaryBait
from upslope.strategies.coverage import MaxHerding, UHerding
from upslope.strategies.dropquery import DropQuery
from upslope.strategies.random import Random
from upslope.strategies.typiclust import TypiClust
from upslope.strategies.uncertainty import Margin


@dataclass(frozen=True)
class Refine(QueryStrategy):
    """UHerding on what an ensemble of strategies leaves of the pool, round by round."""

    name: ClassVar[str] = "refine"
    reference: ClassVar[str] = "Huseljic et al., CVPR 2026 (arXiv 2511.22344)"
    signal_cost: ClassVar[str] = (
        "one forward per candidate and per labelled sample; one more training"
    )
    cost: ClassVar[str] = "rounds x batches selections of eight strategies; memory n d"
    best_for: ClassVar[str] = (
        "small and medium budgets on frozen features, where seconds do not count"
    )

    rounds: Annotated[int, Field(ge=0, description="times that the pool is cleaned")] = 5
    batches: Annotated[
        int, Field(ge=1, description="chosen in each round, one for each strategy at least")
    ] = 100
    share: Annotated[
        float, Field(gt=0, le=1, description="of the pool, in a subset of later rounds")
    ] = 0.4
    subset: Annotated[int, Field(ge=1, description="samples in a subset of the first round")] = 5000
    most: Annotated[int, Field(ge=1, description="samples that a round leaves at most")] = 10_000
    temperature: Temperature = "fitted"

    @property
    def ensemble(self) -> tuple[QueryStrategy, ...]:
        """The strategies that clean the pool."""
        return (
            Random(),
            Margin(),
            Badge(),
            BinaryBait(),
            TypiClust(),
            DropQuery(),
            MaxHerding(),
            self.last,
        )

    @property
    def last(self) -> UHerding:
        """The strategy that chooses from what is left."""
        return UHerding(temperature=self.temperature)

    @property
    def needs(self) -> tuple[Need, ...]:
        """What any strategy of the ensemble needs."""
        return tuple(dict.fromkeys(need for part in self.ensemble for need in part.needs))

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """What UHerding chooses from what the rounds leave; notes say how much that is."""
        left = list(range(len(pool)))
        size = self.subset
        ensemble = self.ensemble
        for _ in range(self.rounds):
            positions: set[int] = set()
            for strategy in ensemble:
                for _ in range(max(1, self.batches // len(ensemble))):
                    part = _draw_rows(left, max(size, budget), rng)
                    positions.update(select_among(strategy, pool, part, budget, rng))
            left = _draw_rows(sorted(positions), max(self.most, budget), rng)
            size = max(budget, int(self.share * len(left)))
        return Choice(select_among(self.last, pool, left, budget, rng), notes={"left": len(left)})


def _draw_rows(rows: list[int], count: int, rng: torch.Generator) -> list[int]:
    """`count` of the rows at random, in order; all where there are no more."""
    if len(rows) <= count:
        return rows
    order = torch.randperm(len(rows), generator=rng)[:count]
    return sorted(rows[i] for i in order.tolist())
