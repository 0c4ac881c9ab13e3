"""Posteriors, and the uncertainties read from them.

With p = softmax(z / T) over C classes, the temperature T being 1 unless given, and p_(1) >= p_(2)
>= ... its values in order:

    least-confidence  1 - p_(1)
    margin            1 - (p_(1) - p_(2))       (Scheffer et al. 2001), turned so that high is near
    entropy           H = -sum_i p_i log p_i    (Shannon 1948; Lewis and Gale 1994), in nats

A dense task has a posterior at every position and says how its uncertainties become one number
(`Task.per_sample`: the mean, unless it is told otherwise), batch by batch so that the maps
themselves are never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.options import Options, Temperature
from upslope.posterior import closeness, entropy, least_confidence
from upslope.signals.temperature import scale_logits
from upslope.tasks.base import Task

MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "least-confidence": least_confidence,
    "margin": closeness,
    "entropy": entropy,
}
"""Name of a measure -> a function (n, C, ...) -> (n, ...) that is high where p is unsure."""


@dataclass(frozen=True)
class Probabilities(Options):
    """The posterior, one forward per sample: (n, classes, ...)."""

    name: ClassVar[str] = "probabilities"

    temperature: Temperature = 1.0
    evaluated: Annotated[
        bool, Field(description="by the views and windows of evaluation, which scores do without")
    ] = False

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n, C, ...) for a prepared batch."""
        with torch.no_grad():
            outputs = task.predict(model, inputs) if self.evaluated else model(inputs)
            return scale_logits(task.logits(outputs).float(), self.temperature).softmax(dim=1)


@dataclass(frozen=True)
class Uncertainty(Options):
    """How unsure the posterior is, one forward per sample: (n,)."""

    name: ClassVar[str] = "uncertainty"

    measure: Annotated[
        Literal["least-confidence", "margin", "entropy"],
        Field(description="how it is read from the posterior"),
    ] = "entropy"
    temperature: Temperature = 1.0

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch."""
        p = Probabilities(self.temperature).compute(model, task, inputs)
        return task.per_sample(MEASURES[self.measure](p), p.argmax(dim=1))
