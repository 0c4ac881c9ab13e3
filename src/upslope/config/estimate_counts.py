"""Costs of one sample, counted on shapes alone: floating-point operations and bytes.

Tensors are on the device "meta": nothing is computed, and `estimate` scales what it timed by this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from upslope.autodiff import tensors_saved_for_backward
from upslope.config.estimate_samples import RepeatedSamples
from upslope.config.plan import without_weights
from upslope.tasks.base import Task
from upslope.training import TrainingSettings


@dataclass(frozen=True)
class SampleCost:
    """What one sample costs.

    training, forward: floating-point operations. kept, scored: bytes that a forward pass keeps for
    the backward one, at the training's input and at the whole one.
    """

    training: float
    forward: float
    kept: int
    scored: int


def count_cost(model: Callable[[], nn.Module], task: Task, samples: RepeatedSamples) -> SampleCost:
    """Count the operations and the bytes of one sample, by running shapes alone.

    model: makes the network. samples: two or more.
    """
    raw, targets = samples.inputs([0, 1]), samples.targets([0, 1])
    prepared = task.prepare(raw)
    augmented, masks = task.augment(prepared, targets, torch.Generator().manual_seed(0))
    network = without_weights(model).train()
    counter = FlopCounterMode(display=False)
    with counter:
        losses, kept = _run_and_count(network, task, augmented, masks)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    training = counter.get_total_flops()
    counter = FlopCounterMode(display=False)
    with counter:
        _, scored = _run_and_count(network.eval(), task, prepared, targets)
    forward = counter.get_total_flops()
    return SampleCost(max(1, training) / 2, max(1, forward) / 2, kept // 2, scored // 2)


def _run_and_count(
    network: nn.Module, task: Task, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, int]:
    """Return (losses, bytes that the backward pass needs beside parameters and buffers)."""
    with tensors_saved_for_backward(network) as saved:
        losses = task.losses(network(inputs.to("meta")), targets.to("meta"))
    return losses, sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def count_weight_bytes(model: nn.Module, settings: TrainingSettings) -> int:
    """Return the bytes of parameters and buffers, of gradients, and of the optimiser's state.

    model: on any device, "meta" among them. settings: say which optimiser.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    state = 2 if settings.optimizer == "adam" else int(settings.momentum > 0)
    return held + (1 + state) * trained
