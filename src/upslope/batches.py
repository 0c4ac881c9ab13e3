"""Moving samples from a data set to the device: resident where they fit, streamed where not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

import torch
from torch import Tensor

from upslope.datasets.base import Dataset
from upslope.errors import ConfigError
from upslope.tasks.base import ChecksTargets, Task
from upslope.threads import Threads

_AHEAD = 2  # batches read while the device works on another


def resolve_device(device: torch.device | str = "auto") -> torch.device:
    """Return the device meant: "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: no such device on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch_device = torch.device(device)
        torch.empty(1, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f'Expected `device` to be "auto" or a device of this machine but got "{device}": '
            f"{reason}. Devices are named cpu, cuda, cuda:1, mps."
        ) from error
    if str(torch_device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch_device


Read = Callable[[Sequence[int]], tuple[Tensor, ...]]
"""Reads samples by index: tensors whose first dimension is the sample."""


def with_targets(dataset: Dataset, task: Task) -> Read:
    """Return a reader of inputs and targets, which refuses targets that are none of the task's."""

    def read(indices: Sequence[int]) -> tuple[Tensor, ...]:
        inputs = dataset.inputs(indices)
        return inputs, read_targets(dataset, task, indices)

    return read


def read_targets(dataset: Dataset, task: Task, indices: Sequence[int]) -> Tensor:
    """Return the targets of some samples, (n, ...). indices: positions in the data set.

    Raises:
        DataError: nobody knows one of them, or it is none of the task's.
    """
    targets = dataset.targets(indices)
    if isinstance(task, ChecksTargets):
        task.check_targets(targets, lambda k: dataset.ids[indices[k]])
    return targets


def inputs_only(dataset: Dataset) -> Read:
    """Reads (inputs,): for samples whose label nobody knows."""
    return lambda indices: (dataset.inputs(indices),)


class Source(Protocol):
    """A fixed list of samples, read by position."""

    def stream(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Return what is read of each batch of positions, on the device, in order."""
        ...


class ResidentSource:
    """Everything on the device, as the data set gives it (uint8 for images)."""

    def __init__(self, read: Read, indices: Sequence[int], device: torch.device) -> None:
        self._tensors = tuple(t.to(device) for t in read(indices))
        self._device = device

    def stream(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield each batch by one gather on the device."""
        for positions in batches:
            where = positions.to(self._device)
            yield tuple(t[where] for t in self._tensors)


class StreamedSource:
    """Read batch by batch in a thread, a few batches ahead; memory does not grow."""

    def __init__(self, read: Read, indices: Sequence[int], device: torch.device) -> None:
        self._read = read
        self._indices = list(indices)
        self._device = device

    def stream(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Read ahead, hand over in order; an unreadable sample raises when its batch is due."""
        waiting: deque[Future[tuple[Tensor, ...]]] = deque()
        with Threads(1, "upslope-read") as threads:
            for i in range(len(batches) + _AHEAD):
                if i < len(batches):
                    indices = [self._indices[p] for p in batches[i].tolist()]
                    waiting.append(threads.submit(self._read, indices))
                if i >= _AHEAD:
                    batch = threads.wait(waiting.popleft())
                    yield tuple(t.to(self._device, non_blocking=True) for t in batch)


def source(dataset: Dataset, read: Read, indices: Sequence[int], device: torch.device) -> Source:
    """Resident where the data set says that it fits, streamed otherwise."""
    kind = ResidentSource if dataset.resident else StreamedSource
    return kind(read, indices, device)


def in_order(n: int, batch_size: int) -> list[Tensor]:
    """Positions 0..n-1 in batches of `batch_size`, the last one perhaps smaller."""
    return [torch.arange(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
