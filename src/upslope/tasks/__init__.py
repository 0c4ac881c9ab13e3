"""Tasks: one file each, one line per name in `REGISTRY`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from upslope import registry
from upslope.errors import ConfigError
from upslope.tasks.base import Metrics, TakesAnswers, Task
from upslope.tasks.classification import Classification
from upslope.tasks.multi_label import MultiLabel
from upslope.tasks.regression import Regression
from upslope.tasks.segmentation import Segmentation
from upslope.tasks.text import TextClassification

__all__ = [
    "REGISTRY",
    "Classification",
    "Metrics",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "TakesAnswers",
    "Task",
    "TextClassification",
    "build",
    "check_options",
    "describe",
]

REGISTRY: Mapping[str, Callable[..., Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "text-classification": TextClassification,
    "multi-label": MultiLabel,
    "regression": Regression,
}
"""name -> class, called as `Task(num_classes=..., mean=..., std=..., classes=..., **options)`."""

_DATA_ARGUMENTS = ("num_classes", "mean", "std", "classes")


def build(
    name: str,
    *,
    num_classes: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    classes: Sequence[str] = (),
    **options: Any,
) -> Task:
    """Return a task. mean, std: what `datasets.statistics(pool)` gives; classes: their names.

    num_classes: classes, labels or numbers to predict.

    Raises:
        ConfigError: an unknown name or option, a value out of range, or statistics that are no
            lists of finite numbers.

    Example:
        >>> import torch
        >>> task = build("classification", num_classes=3)
        >>> task.losses(torch.zeros(2, 3), torch.tensor([0, 2]))  # the logarithm of 3
        tensor([1.0986, 1.0986])
    """
    valid_options = check_options(name, options)
    try:
        means, deviations = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Expected `mean` and `std` to be lists, one number per channel, but got {mean!r} and "
            f"{std!r}."
        ) from error
    return REGISTRY[name](
        num_classes=registry.whole_number(num_classes, "num_classes"),
        mean=means,
        std=deviations,
        classes=tuple(classes),
        **valid_options,
    )


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `build` with their types and ranges checked.

    name, options: as of `build`.

    Raises:
        ConfigError: an unknown task; every unknown or wrong option, in one message.
    """
    task = registry.lookup("task", REGISTRY, name)
    return registry.check_options(f"task {name!r}", task, options, _DATA_ARGUMENTS)


def describe() -> list[registry.Description]:
    """Return every task: its name, one line about it, and its options with defaults and help."""
    return [registry.describe(name, task, _DATA_ARGUMENTS) for name, task in REGISTRY.items()]
