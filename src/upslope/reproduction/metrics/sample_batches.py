"""Samples of a data set as batches that can be iterated over again; metrics read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.batches import in_order, inputs_only, source
from upslope.datasets.base import Dataset
from upslope.errors import InfluenceError
from upslope.tasks.base import Task

Labelled = tuple[Dataset, Sequence[int], Tensor]
"""A data set, positions in it, and the target of each."""
Unlabelled = tuple[Dataset, Sequence[int]]
"""A data set and positions in it."""


class SampleBatches:
    """Samples in batches of (inputs as the task prepares them, targets or None), in order.

    They stay on the device where the data set says that they fit, and are read again in each
    iteration where it says that they do not.

    task: prepares the inputs. dataset, indices: the samples. targets: theirs, (n, ...), or None.
    device: where the batches come to lie. batch_size: most samples per batch.
    name: what errors call the samples.

    Raises:
        InfluenceError: there is no sample, or another number of targets than of samples.
    """

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        indices: Sequence[int],
        targets: Tensor | None,
        device: torch.device,
        batch_size: int,
        name: str = "samples",
    ) -> None:
        if len(indices) == 0:
            raise InfluenceError(f"Expected `{name}` to have at least one sample but got none.")
        if targets is not None and len(targets) != len(indices):
            raise InfluenceError(
                f"Expected one target for each of the {len(indices)} samples of `{name}` but got "
                f"{len(targets)}."
            )
        self._task, self._device = task, device
        self._source = source(dataset, inputs_only(dataset), indices, device)
        self._positions = in_order(len(indices), batch_size)
        self._targets = targets

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        stream = self._source.stream(self._positions)
        for positions, (inputs,) in zip(self._positions, stream, strict=True):
            targets = None if self._targets is None else self._targets[positions].to(self._device)
            yield self._task.prepare(inputs), targets
