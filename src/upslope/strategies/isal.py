"""ISAL: the samples whose label would lower the loss of labelled ones most (Liu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from upslope.pool import Need
from upslope.strategies.base import TopStrategy


@dataclass(frozen=True)
class ISAL(TopStrategy):
    """The candidates of most helpful influence on the loss over the labelled set."""

    name: ClassVar[str] = "isal"
    reference: ClassVar[str] = "Liu et al., ICCV 2021; Koh and Liang, ICML 2017"
    signal_cost: ClassVar[str] = "Hessian products over labelled samples; one double backward each"
    best_for: ClassVar[str] = "medium budgets"

    label: Annotated[
        Literal["pseudo", "expected"], Field(description="what stands for the unknown label")
    ] = "pseudo"
    damping: Annotated[float, Field(gt=0, description="added to the Hessian's diagonal")] = 100.0

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the need for the influence."""
        return (Need.of("influence", label=self.label, damping=self.damping),)
