"""Expected model change: the samples whose label would move the model most.

The label is not known; the answers of a committee, each of whose members was trained on a
bootstrap of the labelled set, stand for it:  (1 / K) sum_k || grad L(f(x), f_k(x)) ||.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from upslope.options import Norm, Parameters
from upslope.pool import Need
from upslope.strategies.base import TopStrategy


@dataclass(frozen=True)
class EMCM(TopStrategy):
    """The largest mean gradient norm at what a bootstrap committee answers; regression too."""

    name: ClassVar[str] = "emcm"
    reference: ClassVar[str] = "Cai, Zhang and Zhou, ICDM 2013"
    signal_cost: ClassVar[str] = "K networks trained on bootstraps; K passes per candidate"
    best_for: ClassVar[str] = "regression; small and medium budgets"

    members: Annotated[int, Field(ge=1, description="K, networks in the committee")] = 4
    epochs: Annotated[int, Field(ge=1, description="passes over a bootstrap, each member")] = 20
    norm: Norm = "global"
    parameters: Parameters = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """The expected gradient norm at the committee's answers."""
        return (
            Need.of(
                "model-change",
                members=self.members,
                epochs=self.epochs,
                norm=self.norm,
                parameters=self.parameters,
            ),
        )
