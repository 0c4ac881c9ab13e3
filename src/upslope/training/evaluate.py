"""Figures over a data set, with the model as it will be used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from upslope.autodiff import evaluating
from upslope.batches import in_order, source, with_targets
from upslope.datasets.base import Dataset, place_of
from upslope.errors import DataError
from upslope.progress import Observer, Progress, Stop, no_progress
from upslope.tasks.base import Task


def evaluate(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int] | None = None,
    *,
    device: torch.device,
    batch_size: int = 256,
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> dict[str, float]:
    """Return the task's figures over `indices` (all by default), in eval mode, without
    augmentation.

    The model's modes are as before afterwards.

    model: trained. dataset: where the samples are. device: where to compute. batch_size: samples at
    a time. observer: is told of progress. stop: a request to stop.

    Raises:
        DataError: nothing to evaluate on, or a sample that cannot be read.
    """
    chosen = range(len(dataset)) if indices is None else indices
    if not len(chosen):
        raise DataError(f"Expected samples to evaluate on but {place_of(dataset)} gave none.")
    metrics = task.metrics()
    batches = in_order(len(chosen), batch_size)
    data = source(dataset, with_targets(dataset), chosen, device)
    done = 0
    with evaluating(model), torch.no_grad():
        for inputs, targets in data.stream(batches):
            if stop:
                stop.check()
            metrics.update(task.predict(model, task.prepare(inputs)), targets)
            done += len(targets)
            observer(Progress("evaluate", done, len(chosen)))
    return metrics.compute()
