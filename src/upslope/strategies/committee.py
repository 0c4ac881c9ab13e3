"""Query by committee: the samples on which networks from other starting points disagree most.

Where labels differ in cost, those of largest total disagreement that the cost budget of a cycle
buys (Kuo et al. 2018): a 0-1 knapsack, solved exactly. How many that are follows from the costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from upslope.errors import ConfigError
from upslope.pool import Need, PoolView, Selection
from upslope.strategies.base import TopStrategy, by_id
from upslope.strategies.costs import costs_of, read_costs
from upslope.strategies.knapsack import knapsack

BOUNDARY = Need.of("boundary-length")
ROUNDING = 1e-9  # 1.1 / 0.1 is 11 units, not 12


@dataclass(frozen=True)
class QBC(TopStrategy):
    """The candidates of highest Jensen-Shannon divergence among a committee, by what they cost."""

    name: ClassVar[str] = "qbc"
    reference: ClassVar[str] = "Seung et al. 1992; Kuo et al., MICCAI 2018"
    signal_cost: ClassVar[str] = "M networks trained on the labels; M forwards per candidate"
    cost: ClassVar[str] = "n log n; with costs n Q, memory n Q / 8 bytes"
    best_for: ClassVar[str] = "medium budgets; labels of unequal cost"

    members: Annotated[int, Field(ge=2, description="M, networks in the committee")] = 3
    epochs: Annotated[int, Field(ge=1, description="passes over the labelled set, each member")] = (
        20
    )
    costs: Annotated[
        str,
        Field(description="unit; boundary, of the predicted mask; or a CSV file of id and cost"),
    ] = "unit"
    cost_budget: Annotated[
        float | None,
        Field(gt=0, description="what the labels of a cycle may cost, instead of their number"),
    ] = None
    cost_unit: Annotated[
        float, Field(gt=0, description="costs count in whole units of this, rounded up")
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.costs == "unit") != (self.cost_budget is None):
            raise ConfigError(
                "Expected `costs` and `cost_budget` together, or neither, but got "
                f"costs={self.costs} and cost_budget={self.cost_budget}."
            )
        if self.costs not in ("unit", "boundary"):
            read_costs(self.costs)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The divergence of the committee and, for costs=boundary, the predicted boundaries."""
        divergence = Need.of("committee", members=self.members, epochs=self.epochs)
        return (divergence, BOUNDARY) if self.costs == "boundary" else (divergence,)

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:
        """The `budget` highest; with costs, as many as `cost_budget` buys, highest first.

        Raises:
            SelectionError: also where the cost budget buys none.
        """
        if self.cost_budget is None:
            return super().select(pool, budget, rng)
        self.check(pool, 1)  # the cost budget takes the place of `budget`
        view, _ = by_id(pool)
        values = view.signal(self.needs[0]).double().clamp(min=0).tolist()
        costs = self.units(view)
        positions = knapsack(
            values, costs, math.floor(self.cost_budget / self.cost_unit + ROUNDING)
        )
        positions.sort(key=lambda i: -values[i])
        cost = self.cost_unit * sum(costs[i] for i in positions)
        ids = tuple(view.candidates[i] for i in positions)
        return Selection(ids, pool.signal(self.needs[0]), {"cost": cost})

    def units(self, pool: PoolView) -> list[int]:
        """Costs in whole units, 1 or more: rounded up, so that the budget is never exceeded."""
        if self.costs == "boundary":
            costs = pool.signal(BOUNDARY).tolist()
        else:
            costs = costs_of(pool.candidates, self.costs)
        return [max(1, math.ceil(cost / self.cost_unit - ROUNDING)) for cost in costs]
