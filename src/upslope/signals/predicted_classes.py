"""Which classes the model sees in a sample, and in how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.options import Options
from upslope.tasks.base import Task


@dataclass(frozen=True)
class PredictedClasses(Options):
    """The share of a sample's positions that each class is most probable at: (n, classes)."""

    name: ClassVar[str] = "predicted-classes"

    masks: Annotated[
        bool, Field(description="refuse a task that predicts one class per sample")
    ] = False

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n, C) for a prepared batch; of one prediction per sample, 1 at the predicted class.

        Raises:
            ModelError: masks are wanted and the task has none.
        """
        with torch.no_grad():
            logits = task.logits(model(inputs))
        if self.masks and logits.ndim < 3:
            raise ModelError(
                "Expected masks, in which foreground to look for, but the task gives logits of "
                f"shape {tuple(logits.shape)}, one prediction per sample. Take the strategy random."
            )
        classes = logits.argmax(dim=1)
        if classes.ndim == 1:
            return F.one_hot(classes, logits.shape[1]).float()
        positions = classes.flatten(start_dim=1)
        shares = [(positions == c).float().mean(dim=1) for c in range(logits.shape[1])]
        return torch.stack(shares, dim=1)
