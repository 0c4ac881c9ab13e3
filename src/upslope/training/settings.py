"""How a task model is trained: the settings, and nothing that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from upslope.fields import check_ranges, option


@dataclass(frozen=True)
class TrainingSettings:
    """One training, from the first epoch to the last.

    The defaults suit small networks on a CPU. The protocol of the paper (A.8, CIFAR-10) is
    `epochs=200, batch_size=128, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4,
    schedule="milestones", milestones=(160,), gamma=0.1`.

    Raises:
        ConfigError: values out of range, all of them named.
    """

    epochs: int = option(20, "Passes over the labelled set in each cycle.", ge=1)
    batch_size: int = option(
        64, "Samples in a batch; a last batch of one sample joins the batch before it.", ge=1
    )
    optimizer: Literal["sgd", "adam"] = option(
        "sgd", "Optimiser: SGD with momentum, or Adam.", choices=("sgd", "adam")
    )
    lr: float = option(0.05, "Learning rate at the start; the peak of one-cycle.", gt=0)
    momentum: float = option(0.9, "Momentum of SGD; Adam ignores it.", ge=0, lt=1)
    weight_decay: float = option(5e-4, "L2 penalty added to the gradient.", ge=0)
    schedule: Literal["milestones", "one-cycle", "constant"] = option(
        "one-cycle",
        "Learning rate: times gamma at each milestone, one warm-up and cosine decay, or constant.",
        choices=("milestones", "one-cycle", "constant"),
    )
    milestones: tuple[int, ...] = option(
        (), "Epochs, counted from 0, at whose start the rate is multiplied by gamma.", ge=1
    )
    gamma: float = option(0.1, "Factor of the learning rate at a milestone.", gt=0, le=1)
    augment: bool = option(True, "Apply the task's random augmentation to training batches.")
    channels_last: bool = option(
        False, "Channels-last memory layout for image networks: pays on CUDA, often on CPU."
    )
    autocast: Literal["bf16", "fp16"] | None = option(
        None, "Mixed precision for training; fp16 scales the loss.", choices=(None, "bf16", "fp16")
    )

    def __post_init__(self) -> None:
        # YAML and command lines bring lists; a frozen dataclass wants something hashable.
        object.__setattr__(self, "milestones", tuple(self.milestones))
        extra = []
        if self.schedule == "milestones" and not self.milestones:
            extra.append(
                'Expected `milestones` to name at least one epoch, as `schedule` is "milestones", '
                'but got (). Name the epochs, or take schedule="constant".'
            )
        check_ranges(self, extra)
