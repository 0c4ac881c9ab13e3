"""Base of the tasks with a softmax over classes: logits, predictions, one number per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from upslope.errors import ConfigError
from upslope.tasks.common import CommonTask


@dataclass(frozen=True)
class SoftmaxTask(CommonTask):
    """`num_classes` logits per sample, or per position of a sample: (n, num_classes, ...).

    mean, std: one number per channel, of images in 0..1; empty leaves them there.
    Outputs are logits, or an object that carries them as `.logits`.
    """

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            names = f", {', '.join(map(repr, self.classes))}" if self.classes else ""
            raise ConfigError(
                f"Expected at least 2 classes but got {self.num_classes}{names}. Name all of them "
                "with data.classes; where numbers are to be learnt, take the task regression "
                "(task.name=regression)."
            )
        super().__post_init__()

    def logits(self, outputs: Any) -> Tensor:
        """Return (n, num_classes, ...). Raises ModelError where `outputs` holds no logits."""
        return self.read_outputs(outputs)

    def predictions(self, outputs: Any) -> Tensor:
        """Return (n, ...): the most probable class, at each position where there are several."""
        return self.logits(outputs).argmax(dim=1)

    def per_sample(self, values: Tensor, answers: Tensor) -> Tensor:  # noqa: ARG002
        """Return (n,) for (n, ...), the mean over positions, where there are any."""
        return values.flatten(start_dim=1).mean(dim=1) if values.ndim > 1 else values
