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
    inputs = task.prepare(raw)
    varied_inputs, varied_targets = task.augment(inputs, targets, torch.Generator().manual_seed(0))
    network = without_weights(model).train()
    counter = FlopCounterMode(display=False)
    with counter:
        losses, kept_bytes = _run_and_count(network, task, varied_inputs, varied_targets)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    training = counter.get_total_flops()
    counter = FlopCounterMode(display=False)
    with counter:
        _, scored_bytes = _run_and_count(network.eval(), task, inputs, targets)
    forward = counter.get_total_flops()
    return SampleCost(max(1, training) / 2, max(1, forward) / 2, kept_bytes // 2, scored_bytes // 2)


def _run_and_count(
    network: nn.Module, task: Task, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, int]:
    """Return (losses, bytes that the backward pass needs beside parameters and buffers)."""
    with tensors_saved_for_backward(network) as tensors:
        losses = task.losses(network(inputs.to("meta")), targets.to("meta"))
    return losses, sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def count_weight_bytes(model: nn.Module, settings: TrainingSettings) -> int:
    """Return the bytes of parameters and buffers, of gradients, and of the optimiser's state.

    model: on any device, "meta" among them. settings: say which optimiser.
    """
    weight_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    all_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    state = 2 if settings.optimizer == "adam" else int(settings.momentum > 0)
    return all_bytes + (1 + state) * weight_bytes
