"""How long the boundaries of the predicted mask are: what drawing it by hand is likely to cost.

Kuo et al. (MICCAI 2018) regress labelling times on the mean boundary length and the number of
components of the prediction. Times differ from team to team; the length itself is given here, as
the number of pairs of neighbouring positions whose predicted classes differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.options import Options
from upslope.tasks.base import Task


@dataclass(frozen=True)
class BoundaryLength(Options):
    """The length of the predicted mask's boundaries in pixels, one forward per sample: (n,)."""

    name: ClassVar[str] = "boundary-length"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """(n,) for a prepared batch.

        Raises:
            ModelError: the task has no masks, hence no boundaries.
        """
        with torch.no_grad():
            logits = task.logits(model(inputs))
        if logits.ndim < 4:
            raise ModelError(
                "Expected a mask, whose boundaries to measure, but the task gives logits of shape "
                f"{tuple(logits.shape)}. Take `costs` unit, or a file of what each label costs."
            )
        return boundary_length(logits.argmax(dim=1))


def boundary_length(masks: Tensor) -> Tensor:
    """Pairs of neighbours along an axis that differ. masks: (n, ...) of classes, returns (n,)."""
    pairs = torch.zeros(len(masks), device=masks.device)
    for axis in range(1, masks.ndim):
        pairs += (masks.diff(dim=axis) != 0).flatten(start_dim=1).sum(dim=1)
    return pairs
