"""An oracle: what could be won at most by choosing among batches that strategies would choose.

Every strategy of an ensemble chooses some batches, each from a random half of the candidates. For
each batch a network is trained on the labels so far and the true labels of the batch, and evaluated
on all unlabelled samples with their true labels; the batch of the best figure is taken. No strategy
may do so: it shows the head-room that is left, as BoSS does (arXiv 2603.13109), and is refused
where people label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from upslope.errors import SelectionError
from upslope.pool import Need, PoolView
from upslope.strategies.badge import Badge
from upslope.strategies.base import Choice, QueryStrategy, select_among
from upslope.strategies.binary_bait import BinaryBait
from upslope.strategies.coverage import MaxHerding, UHerding
from upslope.strategies.random import Random
from upslope.strategies.typiclust import TypiClust
from upslope.strategies.uncertainty import Margin


@dataclass(frozen=True)
class Oracle(QueryStrategy):
    """The best of several strategies' batches, by true labels; in simulations alone."""

    name: ClassVar[str] = "oracle"
    reference: ClassVar[str] = "after BoSS (arXiv 2603.13109)"
    signal_cost: ClassVar[str] = "one forward per candidate; a training per batch"
    cost: ClassVar[str] = "batches trainings, and as many evaluations on all unlabelled samples"
    best_for: ClassVar[str] = "showing the head-room; never for labelling"
    sees_labels: ClassVar[bool] = True

    batches: Annotated[
        int, Field(ge=1, description="tried in a cycle, one for each strategy at least")
    ] = 14

    @property
    def ensemble(self) -> tuple[QueryStrategy, ...]:
        """The strategies whose batches are tried."""
        return (
            Random(),
            Margin(),
            Badge(),
            BinaryBait(),
            TypiClust(),
            MaxHerding(),
            UHerding(temperature=1.0),
        )

    @property
    def needs(self) -> tuple[Need, ...]:
        """What any strategy of the ensemble needs."""
        return tuple(dict.fromkeys(need for part in self.ensemble for need in part.needs))

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """The batch after which the network is best; of equal ones the first.

        Raises:
            SelectionError: there are no true labels to look at.
        """
        if pool.look_ahead is None:
            raise SelectionError(
                "Expected the true labels of the candidates, which oracle looks at, but there are "
                "none: it runs in simulations alone (`Experiment.run`, `compare`). Take another."
            )
        half = max(budget, len(pool) // 2)
        best: tuple[float, list[int]] | None = None
        for strategy in self.ensemble:
            for _ in range(max(1, self.batches // len(self.ensemble))):
                rows = torch.randperm(len(pool), generator=rng)[:half].sort().values.tolist()
                positions = select_among(strategy, pool, rows, budget, rng)
                figure = pool.look_ahead([pool.candidates[i] for i in positions])
                if best is None or figure > best[0]:
                    best = figure, positions
        assert best is not None  # the ensemble is not empty
        return Choice(best[1], notes={"figure": best[0]})
