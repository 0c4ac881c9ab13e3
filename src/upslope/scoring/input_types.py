"""Statistics are for uint8: whoever scores or predicts by a task with some must give uint8."""

from __future__ import annotations

from upslope.datasets.base import Dataset, place_of
from upslope.datasets.readable import input_type
from upslope.errors import ConfigError
from upslope.tasks.base import Normalises, Task


def check_standardised(task: Task, dataset: Dataset) -> None:
    """Refuse float images beside a task with statistics, which would not be applied to them.

    Statistics say that the network was trained on uint8 that was standardised by them. Of floats
    without channels nothing is said: these are features that a frozen network made of its images.

    task: as in training. dataset: what is to be scored.

    Raises:
        ConfigError: float images beside statistics.
    """
    if not (isinstance(task, Normalises) and task.mean) or len(dataset.input_shape) < 2:
        return
    if input_type(dataset) == "float":
        raise ConfigError(
            "Expected images of whole numbers, 0..255 (uint8), as `mean` and `std` of the task say "
            f"how these are standardised, but those of {place_of(dataset)} are floats, which are "
            "taken as they are: the network would see other numbers than in training. Give uint8 "
            "(of floats in 0..1, 255 times these, rounded), or leave `mean` and `std` out where it "
            "was trained on such floats."
        )
