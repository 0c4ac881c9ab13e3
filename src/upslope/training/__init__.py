"""Training a task model: plain PyTorch, resumable at any batch, deterministic on the CPU."""

from upslope.training.companion import Accompanied, Companion, Step
from upslope.training.evaluate import evaluate
from upslope.training.loop import TrainingReport, place, train
from upslope.training.settings import TrainingSettings

__all__ = [
    "Accompanied",
    "Companion",
    "Step",
    "TrainingReport",
    "TrainingSettings",
    "evaluate",
    "place",
    "train",
]
