"""Protocols of signals: a number, a vector or a map per sample, computed with a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from upslope.datasets.base import Dataset
from upslope.tasks.base import Task


class Targets(Protocol):
    """Targets of the labelled samples, by their places: a tensor, or what reads them when asked."""

    def __getitem__(self, places: list[int], /) -> Tensor:
        """Return the targets at these places, (n, ...)."""
        ...


@dataclass(frozen=True)
class FitContext:
    """What a signal may learn from before it is computed: never the test set.

    unlabelled, labelled: positions in `dataset`; targets: n_labelled of them.
    progress: called with (done, total). train: returns a fresh network, trained as the run trains
    its own on these places in `labelled`, in eval mode; None outside a run. cache: a folder for
    what is learnt once for a run; None: nothing is kept. skip_unreadable: samples that cannot be
    read are left out, instead of a DataError.

    model: trained. task: as in training. device: where to compute. rng: of everything random.
    """

    model: nn.Module
    task: Task
    dataset: Dataset
    unlabelled: Sequence[int]
    labelled: Sequence[int]
    targets: Targets
    device: torch.device
    rng: torch.Generator
    progress: Callable[[int, int], None]
    train: Callable[[Sequence[int]], nn.Module] | None = None
    cache: Path | None = None
    skip_unreadable: bool = False


class Signal(Protocol):
    """A frozen dataclass whose fields are its options; one file, one line in the table."""

    name: ClassVar[str]

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:
        """Return values (n, ...) that ask for no gradient; `model` is in eval mode and is left as
        it was.

        task: as in training. inputs: a prepared batch (n, ...).
        """
        ...


@runtime_checkable
class FittedSignal(Protocol):
    """A signal with something of its own to train first (an autoencoder, a committee).

    A frozen dataclass whose fields are its options, as a `Signal` is, which has no `compute` of
    its own: what it learns has.
    """

    name: ClassVar[str]

    def fit(self, context: FitContext) -> Signal:
        """Return the signal to compute with, carrying what was learnt.

        context: what it may learn from.
        """
        ...


@runtime_checkable
class FittedOnce(Protocol):
    """A fitted signal that learns from what is the same in every cycle.

    Where `once` is True, it gets the same random numbers each time and may keep what it learnt.
    """

    once: ClassVar[bool]


@runtime_checkable
class HasTemperature(Protocol):
    """A signal of a posterior with an option `temperature`; "fitted" is replaced by a number that
    is fitted to the labels."""

    @property
    def temperature(self) -> float | str:
        """Return what the logits are divided by."""
        ...


@runtime_checkable
class ChecksModel(Protocol):
    """A fitted signal that tells before any training what it could not learn from."""

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:
        """Raise UpslopeError for a model or a task, by a prepared batch, that will not do."""
        ...


@runtime_checkable
class HasProjection(Protocol):
    """A signal whose values can be compared only if they were made by one random projection."""

    @property
    def projection(self) -> str:
        """Return what tells its projection from that of another version."""
        ...
