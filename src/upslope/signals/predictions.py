"""The model's answers as the task reads them, in the units of the targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from upslope.options import Options
from upslope.tasks.base import Task


@dataclass(frozen=True)
class Predictions(Options):
    """The predictions of the model in the form of targets: (n,) labels or (n, d) numbers."""

    name: ClassVar[str] = "predictions"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n, ...) for a prepared batch."""
        with torch.no_grad():
            return task.predictions(task.predict(model, inputs))
