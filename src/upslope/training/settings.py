"""How a task model is trained: the settings, and nothing that runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from upslope.options import LATER, Options, options_to_record
from upslope.registry import OptionConflict, OptionsError, WrongOption
from upslope.training.recipes import with_recipe

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

    `training.recipes` names sets of values, `TrainingSettings.from_recipe("fast")` one of them.

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
    sample_passes: Annotated[
        int | None,
        Field(
            ge=1,
            description="samples that a training sees, each as often as it comes, however many "
            "labels there are; takes the place of epochs",
        ),
    ] = field(default=None, metadata=LATER)
    batch_size: Annotated[
        int,
        Field(
            ge=1,
            description="samples in a batch; from 2 on, a lone last one joins the batch before",
        ),
    ] = 64
    optimizer: Annotated[
        Literal["sgd", "adam", "muon"],
        Field(
            description="SGD with momentum; Adam; or Muon for filters and matrices, with SGD for "
            "all else (PyTorch 2.9 or later)"
        ),
    ] = "sgd"
    lr: Annotated[
        float, Field(gt=0, description="learning rate at the start; the peak of one-cycle")
    ] = 0.05
    momentum: Annotated[
        float, Field(ge=0, lt=1, description="momentum of SGD and Muon; Adam ignores it")
    ] = 0.9
    nesterov: Annotated[
        bool, Field(description="Nesterov's momentum in SGD; Muon always has it")
    ] = field(default=False, metadata=LATER)
    sgd_lr: Annotated[
        float, Field(gt=0, description="with muon: peak rate of biases and other vectors")
    ] = field(default=0.05, metadata=LATER)
    backbone_rate: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="rate of all that is below the head, as a share of the head's: trained "
            "weights want about 0.1",
        ),
    ] = field(default=1.0, metadata=LATER)
    weight_decay: Annotated[
        float,
        Field(
            ge=0,
            description="L2 penalty, added to the gradient; with muon, taken off its matrices "
            "times the rate",
        ),
    ] = 5e-4
    schedule: Annotated[
        Literal["milestones", "one-cycle", "triangular", "constant"],
        Field(
            description="times gamma at each milestone; warm-up and cosine decay; up and down in "
            "straight lines; or constant"
        ),
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
    flip: Annotated[
        Literal["random", "alternate"],
        Field(
            description="where the task's augmentation mirrors images: each epoch by chance, or in "
            "the first epoch by chance and then every other time"
        ),
    ] = field(default="random", metadata=LATER)
    label_smoothing: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of the target spread over all classes, in training alone; scores "
            "are computed without",
        ),
    ] = field(default=0.0, metadata=LATER)
    whitening: Annotated[
        bool,
        Field(
            description="set the filters of a network's whitening layer from the images of the "
            "pool before each training; no label is read"
        ),
    ] = field(default=False, metadata=LATER)
    batch_statistics: Annotated[
        Literal["running", "recomputed"],
        Field(
            description="of batch normalisation, for scores and evaluation: the running mean of "
            "the last batches, or computed over the labelled set once training is over"
        ),
    ] = field(default="running", metadata=LATER)
    channels_last: Annotated[
        bool,
        Field(
            description="channels-last layout for all weights of images and volumes; without, "
            "networks of Upslope's own take the order of memory that is fastest on a CPU"
        ),
    ] = False
    autocast: Annotated[
        Literal["bf16", "fp16"] | None,
        Field(description="mixed precision in training; fp16 scales the loss; none for float32"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "milestones" and not self.milestones:
            wanted_words = "at least one epoch, as `schedule` is milestones,"
            got = "none. Name the epochs, or take the schedule constant"
            raise OptionsError([WrongOption(self.name, "milestones", wanted_words, got)])
        if self.sample_passes is not None and self.epochs != "auto":
            text = (
                "Expected one of `epochs` and `sample_passes`, as each says how long a training "
                f"lasts, but got {self.epochs} and {self.sample_passes}. Leave one out."
            )
            raise OptionsError([OptionConflict(self.name, text)])
        if self.backbone_rate != 1 and self.optimizer == "muon":
            wanted_words = "1 with optimizer muon, whose groups are matrices and vectors,"
            got = f"{self.backbone_rate}. Take sgd or adam"
            raise OptionsError([WrongOption(self.name, "backbone_rate", wanted_words, got)])
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            wanted_words = "above 0, as `nesterov` is a form of momentum,"
            got = "0. Set momentum to 0.9, or nesterov to false"
            raise OptionsError([WrongOption(self.name, "momentum", wanted_words, got)])

    @classmethod
    def from_recipe(cls, name: str, **changes: Any) -> TrainingSettings:
        """Return the settings that the recipe `name` stands for, with `changes` on top.

        Raises:
            ConfigError: an unknown recipe, or options as for `TrainingSettings`.
        """
        return cls(**with_recipe(name, changes))

    def record(self) -> dict[str, Any]:
        """Return the settings as a ledger and a checkpoint hold them."""
        return options_to_record(self)

    def epochs_for(self, labels: int) -> int:
        """Return the number of passes over a labelled set of `labels` samples."""
        if self.sample_passes is not None:
            return max(1, round(self.sample_passes / labels))
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
