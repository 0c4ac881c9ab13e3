"""How often the prediction changes when most of the features are dropped in front of the head.

With h the penultimate features, W the head and M_1 .. M_T random masks that keep a feature with
probability 1 - rate (and divide it by that), the number of t with

    argmax W (M_t h) != argmax W h                         (Gupte et al. 2024, Eq. 3)

The masks depend on the seed alone: they are the same for every sample and every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.models.features import head, with_features
from upslope.options import Options
from upslope.tasks.base import Task


@dataclass(frozen=True)
class FeatureDropout(Options):
    """In how many of T passes dropped features change the prediction: (n,)."""

    name: ClassVar[str] = "feature-dropout"

    passes: Annotated[int, Field(ge=1, description="T, random masks")] = 3
    rate: Annotated[float, Field(gt=0, lt=1, description="share of the features dropped")] = 0.75
    seed: Annotated[int, Field(ge=0, description="which masks")] = 0

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch; a dense task takes the mean over its positions."""
        with torch.no_grad():
            outputs, features = with_features(model, inputs)
            classes = task.logits(outputs).argmax(dim=1)
            layer = head(model)
            rng = torch.Generator().manual_seed(self.seed)
            change_counts = torch.zeros(classes.shape, device=classes.device)
            for _ in range(self.passes):
                mask = torch.rand(features.shape[-1], generator=rng) >= self.rate
                features_left = features * (mask.to(features) / (1 - self.rate))
                change_counts += task.logits(layer(features_left)).argmax(dim=1) != classes
            return task.per_sample(change_counts, classes)
