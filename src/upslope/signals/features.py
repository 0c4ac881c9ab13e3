"""Penultimate features: what the last linear layer of the task model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from upslope.models.features import mean_over_positions, with_features
from upslope.options import Options
from upslope.tasks.base import Task


@dataclass(frozen=True)
class Features(Options):
    """Penultimate features, one forward per sample: (n, d)."""

    name: ClassVar[str] = "features"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n, d) for a prepared batch; feature maps are averaged over their positions."""
        with torch.no_grad():
            _, features = with_features(model, inputs)
            return mean_over_positions(features.float())
