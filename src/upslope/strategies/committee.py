"""Query by committee: the samples on which networks from other starting points disagree most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from upslope.pool import Need
from upslope.strategies.base import TopStrategy


@dataclass(frozen=True)
class QBC(TopStrategy):
    """The candidates of highest Jensen-Shannon divergence among a committee, each of unit cost."""

    name: ClassVar[str] = "qbc"
    reference: ClassVar[str] = "Seung et al. 1992; Kuo et al., MICCAI 2018, at unit cost"
    requires: ClassVar[str] = "M networks trained on the labels; M forwards a candidate"
    home: ClassVar[str] = "medium budgets"

    members: Annotated[int, Field(ge=2, description="M, networks in the committee")] = 3
    epochs: Annotated[int, Field(ge=1, description="passes over the labelled set, each member")] = (
        20
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        """The divergence of the committee."""
        return (Need.of("committee", members=self.members, epochs=self.epochs),)
