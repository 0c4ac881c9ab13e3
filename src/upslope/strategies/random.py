"""Random: the baseline that a strategy has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from upslope.pool import PoolView
from upslope.strategies.base import Choice, QueryStrategy


@dataclass(frozen=True)
class Random(QueryStrategy):
    """Uniform, without replacement."""

    name: ClassVar[str] = "random"
    reference: ClassVar[str] = "uniform sampling"
    signal_cost: ClassVar[str] = "nothing"
    cost: ClassVar[str] = "n"
    best_for: ClassVar[str] = "the baseline at every budget; hard to beat with very few labels"

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """The first `budget` of a random permutation."""
        return Choice(torch.randperm(len(pool), generator=rng)[:budget].tolist())
