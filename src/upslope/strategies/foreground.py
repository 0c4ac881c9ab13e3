"""Foreground-aware random: the baseline that has to be beaten on masks and volumes.

Where most of an image or a volume is background, most uniform draws are wasted on samples that hold
nothing else. So a share of the batch is drawn uniformly among the candidates in which the model
predicts any foreground, and the rest uniformly among all that are left (nnActive's random with 66%
foreground). Before a model sees foreground anywhere, this is `random`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from upslope.errors import SelectionError
from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy


@dataclass(frozen=True)
class ForegroundRandom(QueryStrategy):
    """Uniform, with a share of the batch among samples of predicted foreground."""

    name: ClassVar[str] = "foreground-random"
    reference: ClassVar[str] = "Lueth et al. 2025 (nnActive), random with foreground"
    signal_cost: ClassVar[str] = "one forward per candidate"
    cost: ClassVar[str] = "n"
    best_for: ClassVar[str] = "the baseline for masks and volumes with much background"

    share: Annotated[
        float, Field(ge=0, le=1, description="of the batch, drawn where foreground is predicted")
    ] = 0.66
    background: Annotated[int, Field(ge=0, description="the class that is no foreground")] = 0

    @property
    def needs(self) -> tuple[Need, ...]:
        """The predicted share of each class."""
        return (Need.of("predicted-classes", masks=True),)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """Uniform among those with foreground first, then among the rest; scores are its share."""
        shares = pool.signal(self.needs[0]).float()
        if self.background >= shares.shape[1]:
            raise SelectionError(
                f"Expected `background` to be one of the {shares.shape[1]} classes, numbered from "
                f"0, but got {self.background}."
            )
        foreground = shares.sum(dim=1) - shares[:, self.background]
        order = torch.randperm(len(pool), generator=rng)
        foreground_count = round(self.share * budget)
        with_foreground = order[foreground[order] > 0][:foreground_count].tolist()
        taken_positions = set(with_foreground)
        rest = [i for i in order.tolist() if i not in taken_positions]
        return Choice(
            with_foreground + rest[: budget - len(with_foreground)],
            foreground,
            {"foreground": float((foreground > 0).float().mean())},
        )
