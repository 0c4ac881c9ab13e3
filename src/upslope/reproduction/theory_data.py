"""Samples of a data set as batches that can be gone through again and again."""

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


class Batches:
    """(prepared inputs, targets or None) in order, as often as it is gone through.

    Held on the device where the data set says that it fits, and read again each time where not.
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
            known = None if self._targets is None else self._targets[positions].to(self._device)
            yield self._task.prepare(inputs), known
