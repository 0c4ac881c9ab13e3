"""Training a task model: plain PyTorch, resumable at any batch, deterministic on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from upslope.pool import Strategy
from upslope.strategies.learning_loss import PREDICTED_LOSS
from upslope.training.auxiliary_module import AuxiliaryModule, HasAuxiliaryModule, Step
from upslope.training.evaluate import evaluate, primary_figure
from upslope.training.fit import place, train
from upslope.training.loop import TrainingReport
from upslope.training.loss_prediction import LearningLossModule
from upslope.training.recipes import RECIPES, with_recipe
from upslope.training.settings import TrainingSettings

__all__ = [
    "RECIPES",
    "AuxiliaryModule",
    "HasAuxiliaryModule",
    "Step",
    "TrainingReport",
    "TrainingSettings",
    "auxiliary_module",
    "evaluate",
    "place",
    "primary_figure",
    "train",
    "trains_along",
    "with_recipe",
]

MODULES: Mapping[str, Callable[[], AuxiliaryModule]] = {PREDICTED_LOSS.name: LearningLossModule}
"""Name of a signal -> the module that gives it, which is trained along with the task network."""


def auxiliary_module(strategy: Strategy) -> AuxiliaryModule | None:
    """Return a new module that is trained along with the network for a strategy, for one run.

    strategy: gets the module of `MODULES` that gives a signal that it needs, or its own companion.

    Returns: None for a strategy that needs none.
    """
    if isinstance(strategy, HasAuxiliaryModule):
        return strategy.companion()
    names = [need.name for need in strategy.needs if need.name in MODULES]
    return MODULES[names[0]]() if names else None


def trains_along(strategy: Strategy) -> bool:
    """Whether something is trained along with the network for a strategy."""
    needs = (need.name for need in strategy.needs)
    return isinstance(strategy, HasAuxiliaryModule) or any(name in MODULES for name in needs)
