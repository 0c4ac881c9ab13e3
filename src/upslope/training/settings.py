"""How a task model is trained: the settings, and nothing that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from upslope.errors import ConfigError
from upslope.options import Options


@dataclass(frozen=True)
class TrainingSettings(Options):
    """One training, from the first epoch to the last.

    The defaults suit small networks on a CPU. The protocol of the paper (A.8, CIFAR-10) is
    `epochs=200, batch_size=128, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4,
    schedule="milestones", milestones=(160,), gamma=0.1`.

    Raises:
        ConfigError: values of a wrong type or out of range, all of them named.
    """

    name: ClassVar[str] = "training"

    epochs: Annotated[
        int, Field(ge=1, description="passes over the labelled set in each cycle")
    ] = 20
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
