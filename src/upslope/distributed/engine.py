"""The seam between work on batches and where it is done.

`scoring` and `training.evaluate` describe their work as a `Work`, which knows how to compute any
batch by itself. The batch is the unit that is handed out: its samples, its size and its random
numbers do not depend on how many processes there are, and so neither does any result.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Work(Protocol):
    """A frozen dataclass that computes one result per batch, in any process."""

    @property
    def model(self) -> nn.Module:
        """Return the network; other processes use their own, with the same weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where to compute; other processes use their own device."""
        ...

    def stream(self, batches: Sequence[Tensor]) -> Generator[Any]:
        """Yield a result for each batch, in order: tensors on the CPU and plain data.

        batches: positions of samples, each (n,) int64.
        """
        ...


class Engine(Protocol):
    """Computes the batches of some work on several processes."""

    def compute(self, work: Work, batches: Sequence[Tensor]) -> Generator[Any]:
        """Yield the results of all batches, in order, as `work.stream` would.

        Raises:
            RunError: processes ended, and none can take over.
            UpslopeError: what the work itself raises, wherever it ran.
        """
        ...


_CURRENT: ContextVar[Engine | None] = ContextVar("upslope_engine", default=None)


def current() -> Engine | None:
    """Return the engine in use; None where all is computed in this process."""
    return _CURRENT.get()


@contextmanager
def using(engine: Engine | None) -> Iterator[None]:
    """Let `engine` compute batches while the block runs; None: this process alone."""
    token = _CURRENT.set(engine)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def compute_batches(work: Work, batches: Sequence[Tensor]) -> Generator[Any]:
    """Yield a result for each batch, in order, computed by the engine in use.

    work: what to compute. batches: positions of samples, each (n,) int64.
    """
    engine = current()
    return work.stream(batches) if engine is None else engine.compute(work, batches)
