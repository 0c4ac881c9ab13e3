"""Uncertainty sampling: the samples whose posterior is least sure.

With p_(1) >= p_(2) >= ... the posterior in order,

    least-confidence  1 - p_(1)               (Lewis and Gale 1994; Culotta and McCallum 2005)
    margin            1 - (p_(1) - p_(2))     (Scheffer, Decomain and Wrobel 2001)
    entropy           -sum_i p_i log p_i      (Settles and Craven 2008)

The three agree for two classes. `temperature` divides the logits first. A dense task takes the mean
over positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from upslope.options import LATER, Temperature
from upslope.pool import Need
from upslope.strategies.base import TopStrategy
from upslope.strategies.posteriors import uncertainty_need


@dataclass(frozen=True)
class LeastConfidence(TopStrategy):
    """The candidates whose most probable class is least probable."""

    name: ClassVar[str] = "least-confidence"
    reference: ClassVar[str] = "Lewis and Gale 1994; Culotta and McCallum 2005"
    signal_cost: ClassVar[str] = "one forward per candidate"
    best_for: ClassVar[str] = "medium and large budgets"

    temperature: Temperature = field(default=1.0, metadata=LATER)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The uncertainty 1 - p_(1)."""
        return (uncertainty_need("least-confidence", self.temperature),)


@dataclass(frozen=True)
class Margin(TopStrategy):
    """The candidates whose two most probable classes are nearest."""

    name: ClassVar[str] = "margin"
    reference: ClassVar[str] = "Scheffer, Decomain and Wrobel 2001"
    signal_cost: ClassVar[str] = "one forward per candidate"
    best_for: ClassVar[str] = "networks whose features are trained, for one forward; medium budgets"

    temperature: Temperature = field(default=1.0, metadata=LATER)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The uncertainty 1 - (p_(1) - p_(2))."""
        return (uncertainty_need("margin", self.temperature),)


@dataclass(frozen=True)
class Entropy(TopStrategy):
    """The candidates whose posterior has the highest entropy."""

    name: ClassVar[str] = "entropy"
    reference: ClassVar[str] = "Shannon 1948; Settles and Craven 2008"
    signal_cost: ClassVar[str] = "one forward per candidate"
    best_for: ClassVar[str] = "medium and large budgets"

    temperature: Temperature = field(default=1.0, metadata=LATER)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The entropy of the posterior."""
        return (uncertainty_need("entropy", self.temperature),)
