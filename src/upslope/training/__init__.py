"""Training a task model: plain PyTorch, resumable at any batch, deterministic on the CPU."""

from upslope.training.auxiliary_module import AuxiliaryModule, HasAuxiliaryModule, Step
from upslope.training.evaluate import evaluate
from upslope.training.fit import place, train
from upslope.training.loop import TrainingReport
from upslope.training.recipes import RECIPES, with_recipe
from upslope.training.settings import TrainingSettings

__all__ = [
    "RECIPES",
    "AuxiliaryModule",
    "HasAuxiliaryModule",
    "Step",
    "TrainingReport",
    "TrainingSettings",
    "evaluate",
    "place",
    "train",
    "with_recipe",
]
