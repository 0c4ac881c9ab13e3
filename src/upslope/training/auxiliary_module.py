"""The seam for what trains along with the task model: learning loss and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from upslope.pool import Need

if TYPE_CHECKING:
    from upslope.signals.base import Signal


@dataclass(frozen=True)
class Step:
    """One training batch, after the forward pass and before the backward.

    losses: (n,), in the graph. progress: share of the training done, 0 to 1. lr: this step's rate.
    scaler: of the loss, which `autocast: fp16` scales; it takes the scale off the gradients of an
    optimiser that is stepped through it, and leaves out a step whose gradients are not finite.

    model: in training mode. inputs, targets: the batch. outputs: of the model. epoch: its number.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    outputs: Any
    losses: Tensor
    epoch: int
    progress: float
    lr: float
    scaler: torch.amp.GradScaler


class AuxiliaryModule(Protocol):
    """Owns its parameters and their optimiser; both are checkpointed with the task model.

    A training calls `begin`, then for each batch `loss` and, once gradients are there, `step`,
    and finally `end`, an exception included. Scoring asks `signal` before the signal table.
    """

    def begin(self, model: nn.Module, device: torch.device, seed: int) -> None:
        """Attach to a model (hooks) and start anew; every random number comes from `seed`.

        device: where to compute.
        """
        ...

    def loss(self, step: Step) -> Tensor | None:
        """A scalar added to the mean of the losses; None for nothing."""
        ...

    def step(self, step: Step) -> None:
        """Update its own parameters, by `step.scaler`; their gradients are its to clear."""
        ...

    def end(self) -> None:
        """Detach this module from the model."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return parameters and optimiser state, as tensors."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave, after `begin`."""
        ...

    def signal(self, need: Need) -> Signal | None:
        """The signal that it computes itself, None for one that it does not know."""
        ...


@runtime_checkable
class HasAuxiliaryModule(Protocol):
    """A strategy with a companion."""

    def companion(self) -> AuxiliaryModule:
        """A new companion, for one run."""
        ...
