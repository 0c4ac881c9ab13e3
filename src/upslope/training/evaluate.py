"""Figures over a data set, with the model as it will be used."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.autodiff import evaluating
from upslope.batches import in_order, source, with_targets
from upslope.datasets.base import Dataset, place_of
from upslope.distributed.engine import compute_batches
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
    positions = range(len(dataset)) if indices is None else indices
    if not len(positions):
        raise DataError(f"Expected samples to evaluate on but {place_of(dataset)} gave none.")
    metrics = task.metrics()
    batches = in_order(len(positions), batch_size)
    work = _Evaluation(model, task, dataset, positions, device)
    count = 0
    with closing(compute_batches(work, batches)) as results:
        for outputs, targets in results:
            if stop:
                stop.check()
            metrics.update(outputs, targets)
            count += len(targets)
            observer(Progress("evaluate", count, len(positions)))
    return metrics.compute()


def primary_figure(figures: Mapping[str, float], task: Task, what: str) -> float:
    """Return the task's primary figure over some samples.

    figures: as `evaluate` returned them. what: the samples in words.

    Raises:
        DataError: none of the samples counts: every pixel of their masks is ignored, or none of the
            labels is present.
    """
    if task.primary not in figures:
        raise DataError(
            f"Expected something to measure {task.primary!r} by in the targets of {what} but there "
            "is nothing: every pixel of a mask is to be ignored, or no sample has any of the "
            "labels. Correct its targets, or leave it out."
        )
    return figures[task.primary]


@dataclass(frozen=True)
class _Evaluation:
    """What `evaluate` computes of each batch: the outputs of the network, and the targets."""

    model: nn.Module
    task: Task
    dataset: Dataset
    indices: Sequence[int]
    device: torch.device

    def stream(self, batches: Sequence[Tensor]) -> Generator[tuple[Any, Tensor]]:
        """Yield (outputs, targets) of each batch of positions, on the device."""
        read = with_targets(self.dataset, self.task)
        data = source(self.dataset, read, self.indices, self.device)
        for inputs, targets in data.stream(batches):
            with evaluating(self.model), torch.no_grad():
                outputs = self.task.predict(self.model, self.task.prepare(inputs))
            yield outputs, targets
