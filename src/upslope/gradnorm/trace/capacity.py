"""How many samples fit: what one of them holds in memory between forward and backward pass."""

from __future__ import annotations

import torch
from torch import nn

from upslope.autodiff import tensors_saved_for_backward
from upslope.gradnorm.core.batch import Batch, Inputs
from upslope.gradnorm.core.outputs import tensors_in
from upslope.gradnorm.core.restoring import without_traces
from upslope.gradnorm.trace.sharing import open_batch

_CPU = 4 << 30
"""Bytes on a CPU, where what is free changes from run to run and results must not."""
_TRANSIENT = 3
"""The saved activations, and as much again twice for gradients and copies on their way."""


def samples_that_fit(model: nn.Module, inputs: Inputs, memory: int | None = None) -> int:
    """The batch size that `memory` holds for `gradient_norms`, at least 1.

    inputs: one sample or more, in dimension 0; the first is run forward, once.
    memory: bytes; by default 4 GiB on a CPU and 70% of what is free on a GPU.

    model: the network.
    """
    held, device = held_by_one(model, open_batch(model, inputs))
    if memory is None:
        cuda = device.type == "cuda"
        memory = int(0.7 * torch.cuda.mem_get_info(device)[0]) if cuda else _CPU
    return max(1, memory // max(1, _TRANSIENT * sum(size for size, _ in held)))


def held_by_one(model: nn.Module, batch: Batch) -> tuple[list[tuple[int, bool]], torch.device]:
    """What the first sample keeps in memory for the backward pass, and the device of its outputs.

    Bytes of each tensor, and whether it holds floating numbers. Parameters and buffers are not
    among it; of views of one tensor there is one.
    """
    hooks = tensors_saved_for_backward(model)
    with without_traces(model), torch.enable_grad(), hooks as saved:
        outputs = batch.rows(slice(0, 1)).call(model)
    tensors = tensors_in(outputs)
    held = [(t.untyped_storage().nbytes(), t.is_floating_point()) for t in saved.values()]
    return held, tensors[0].device if tensors else torch.device("cpu")
