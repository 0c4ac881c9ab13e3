"""How a task model is trained: the settings, and nothing that runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from upslope.errors import ConfigError
from upslope.options import Options

AUTO_EPOCHS = 20
"""Fewest passes over the labelled set with `epochs="auto"`."""

AUTO_STEPS = 400
"""Fewest optimiser steps with `epochs="auto"`. With 100 labels, `cnn-small` reaches 98% and more of
its training set in 200 steps and all of it in 400, on digits and on Fashion-MNIST; accuracy on the
test set still rises between. `tests/test_training.py` holds it for digits."""


@dataclass(frozen=True)
class TrainingSettings(Options):
    """One training, from the first epoch to the last.

    The defaults suit small networks on a CPU. Few labels make few batches, and a network that has
    taken twenty steps has fitted nothing; batch normalisation has not even met its statistics.
    So `epochs` is "auto" unless given: `AUTO_EPOCHS` passes, or as many as make `AUTO_STEPS`
    steps where the labelled set is small. A number is taken as it is.

    The protocol of the paper (A.8, CIFAR-10) is
    `epochs=200, batch_size=128, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4,
    schedule="milestones", milestones=(160,), gamma=0.1`.

    Raises:
        ConfigError: values of a wrong type or out of range, all of them named.
    """

    name: ClassVar[str] = "training"

    epochs: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Field(
            description="passes over the labelled set in each cycle; auto: 20, and where that is "
            "less than 400 steps, as many as make 400"
        ),
    ] = "auto"
    batch_size: Annotated[
        int, Field(ge=1, description="samples in a batch; a lone last one joins the batch before")
    ] = 64
    optimizer: Annotated[
        Literal["sgd", "adam"], Field(description="SGD with momentum, or Adam")
    ] = "sgd"
    lr: Annotated[
        float, Field(gt=0, description="learning rate at the start; the peak of one-cycle")
    ] = 0.05
    momentum: Annotated[
        float, Field(ge=0, lt=1, description="momentum of SGD; Adam ignores it")
    ] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty, added to the gradient")] = (
        5e-4
    )
    schedule: Annotated[
        Literal["milestones", "one-cycle", "constant"],
        Field(description="times gamma at each milestone; warm-up and cosine decay; or constant"),
    ] = "one-cycle"
    milestones: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="epochs, counted from 0, from whose start on the rate is times gamma"),
    ] = ()
    gamma: Annotated[
        float, Field(gt=0, le=1, description="factor of the learning rate at a milestone")
    ] = 0.1
    augment: Annotated[
        bool, Field(description="apply the task's random augmentation to training batches")
    ] = True
    channels_last: Annotated[
        bool, Field(description="channels-last layout for image networks: often pays")
    ] = False
    autocast: Annotated[
        Literal["bf16", "fp16"] | None,
        Field(description="mixed precision in training; fp16 scales the loss; none for float32"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "milestones" and not self.milestones:
            raise ConfigError(
                "training: Expected `milestones` to name at least one epoch, as `schedule` is "
                '"milestones", but got (). Name the epochs, or take schedule="constant".'
            )

    def epochs_for(self, labels: int) -> int:
        """Return the number of passes over a labelled set of `labels` samples."""
        if self.epochs != "auto":
            return self.epochs
        return max(AUTO_EPOCHS, math.ceil(AUTO_STEPS / self.steps_per_epoch(labels)))

    def steps_per_epoch(self, labels: int) -> int:
        """Return the number of batches in a pass; a lone last sample joins the batch before."""
        whole, rest = divmod(labels, self.batch_size)
        return max(1, whole + (rest > 1 or (rest == 1 and whole == 0)))

    def steps_for(self, labels: int) -> int:
        """Return the number of optimiser steps that a labelled set of `labels` samples gets."""
        return self.epochs_for(labels) * self.steps_per_epoch(labels)
