"""LL4AL: the candidates whose predicted loss is highest (Yoo and Kweon, CVPR 2019).

The loss is predicted by a module that is trained beside the task network
(`upslope.training.loss_prediction`); the strategy asks for its prediction as a signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from upslope.pool import Need
from upslope.strategies.base import TopStrategy

PREDICTED_LOSS = Need.of("predicted-loss")


@dataclass(frozen=True)
class LL4AL(TopStrategy):
    """The candidates of highest predicted loss."""

    name: ClassVar[str] = "ll4al"
    reference: ClassVar[str] = "Yoo and Kweon, CVPR 2019"
    signal_cost: ClassVar[str] = "a loss prediction module trained along; one forward per candidate"
    best_for: ClassVar[str] = "medium and large budgets"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the need for the predicted loss."""
        return (PREDICTED_LOSS,)
