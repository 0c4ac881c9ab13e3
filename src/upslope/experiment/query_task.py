"""The task of a query: as it is given, or as the outputs of the network tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upslope import registry, tasks
from upslope.autodiff import evaluating
from upslope.errors import ConfigError, ModelError, UpslopeError
from upslope.memory import raise_memory_error
from upslope.tasks.base import Task
from upslope.tasks.common import precision_remedy


def task_for(
    model: nn.Module,
    sample: Tensor,
    task: str | Task | None,
    classes: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Task:
    """Return the task, with as many classes as the network puts out.

    sample: (n, ...) as the data set gives it, on the model's device. classes: names of the pool's;
    used where they are as many. mean, std: of images of whole numbers.

    Raises:
        ConfigError: an unknown task; images of whole numbers without mean and std, or with a task
            that has its own.
        ModelError: outputs that do not tell what they are.
    """
    if task is not None and not isinstance(task, str):
        if mean is not None or std is not None:
            raise ConfigError(
                "Expected `mean` and `std` in the task, which is given, but got them beside it."
            )
        return task
    name = task or "classification"
    registry.lookup("task", tasks.REGISTRY, name)
    texts = name == "text-classification"
    if not sample.is_floating_point() and not texts and (mean is None or std is None):
        raise ConfigError(
            "Expected `mean` and `std`, by which images of 0..255 were normalised in training once "
            "they were scaled to 0..1, but got none. Give them, one number per channel (mean=[0], "
            "std=[1] leaves 0..1), or give floats as the network takes them."
        )
    options: dict[str, Any] = {"mean": tuple(mean or ()), "std": tuple(std or ())}
    count = _outputs(model, tasks.build(name, num_classes=2, **options), sample)
    names = tuple(classes) if len(classes) == count else ()
    return tasks.build(name, num_classes=count, classes=names, **options)


def _outputs(model: nn.Module, task: Task, sample: Tensor) -> int:
    """How many numbers the network puts out per sample, or per position of it."""
    inputs = task.prepare(sample)
    try:
        with evaluating(model), torch.no_grad():
            outputs = model(inputs)
    except UpslopeError:
        raise
    except Exception as error:  # whatever a network of somebody else's may raise
        raise_memory_error(error)
        raise ModelError(
            f"Expected {type(model).__name__} to take a batch of shape {tuple(inputs.shape)} "
            f"{inputs.dtype} but it raised {type(error).__name__}: {error}"
            + precision_remedy(model, inputs)
        ) from error
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"Expected {type(model).__name__} to return logits, (n, classes, ...), or an object "
            f"that has them as `.logits`, but got {type(outputs).__name__}. Wrap the model."
        )
    if logits.ndim < 2 or len(logits) != len(sample):
        raise ModelError(
            f"Expected {type(model).__name__} to return logits (n, classes, ...) for {len(sample)} "
            f"samples but got shape {tuple(logits.shape)}. Wrap the model."
        )
    return _checked_count(logits, task, type(model).__name__)


def _checked_count(logits: Tensor, task: Task, model: str) -> int:
    kind = next(name for name, cls in tasks.REGISTRY.items() if type(task) is cls)
    if logits.ndim > 2 and kind != "segmentation":
        raise ModelError(
            f"Expected {model} to return one row of logits per sample for the task {kind} but got "
            f"shape {tuple(logits.shape)}. Set task='segmentation' where these are maps."
        )
    if logits.shape[1] < 2 and kind in ("classification", "text-classification", "segmentation"):
        raise ModelError(
            f"Expected {model} to return logits of two classes or more for the task {kind} but it "
            "returns one number per sample or pixel, whose softmax is always 1. Of a sigmoid's "
            "logit z make two, torch.cat([torch.zeros_like(z), z], dim=1); for numbers set "
            "task='regression'."
        )
    return logits.shape[1]
