"""Monte-Carlo dropout: the samples on which networks with other units dropped disagree.

With p_t the posterior of pass t of T, and p their mean (Gal, Islam and Ghahramani 2017):

    bald             H[p] - (1/T) sum_t H[p_t]
    mc-entropy       H[p]
    variation-ratio  1 - (votes of the class most often first) / T
    mean-std         mean over classes of the standard deviation of p_t over t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from upslope.pool import Need
from upslope.strategies.base import TopStrategy


@dataclass(frozen=True)
class McDropoutStrategy(TopStrategy):
    """What the four share: how many passes."""

    measure: ClassVar[str]
    signal_cost: ClassVar[str] = "a network with dropout; T forwards of what lies behind it"
    best_for: ClassVar[str] = "medium and large budgets"

    passes: Annotated[
        int, Field(ge=2, description="T, the number of passes; the paper takes 1000")
    ] = 100

    @property
    def needs(self) -> tuple[Need, ...]:
        """What is read from the T posteriors."""
        return (Need.of("mc-dropout", measure=self.measure, passes=self.passes),)


@dataclass(frozen=True)
class Bald(McDropoutStrategy):
    """The most information that the label would give about the weights."""

    name: ClassVar[str] = "bald"
    measure: ClassVar[str] = "bald"
    reference: ClassVar[str] = "Houlsby et al. 2011; Gal, Islam and Ghahramani, ICML 2017"


@dataclass(frozen=True)
class McEntropy(McDropoutStrategy):
    """The highest entropy of the mean posterior."""

    name: ClassVar[str] = "mc-entropy"
    measure: ClassVar[str] = "entropy"
    reference: ClassVar[str] = "Gal, Islam and Ghahramani, ICML 2017"


@dataclass(frozen=True)
class VariationRatio(McDropoutStrategy):
    """The most passes that vote against the majority."""

    name: ClassVar[str] = "variation-ratio"
    measure: ClassVar[str] = "variation-ratio"
    reference: ClassVar[str] = "Freeman 1965; Gal, Islam and Ghahramani, ICML 2017"


@dataclass(frozen=True)
class MeanStd(McDropoutStrategy):
    """The highest standard deviation of the posterior over passes, mean over classes."""

    name: ClassVar[str] = "mean-std"
    measure: ClassVar[str] = "mean-std"
    reference: ClassVar[str] = "Kampffmeyer et al. 2016; Kendall et al. 2017"
