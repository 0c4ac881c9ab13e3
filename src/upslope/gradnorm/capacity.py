"""How many samples fit: what one of them holds in memory between forward and backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from upslope.gradnorm.outputs import Inputs, call, opened, tensors_in

_CPU = 4 << 30
"""Bytes on a CPU, where what is free changes from run to run and results must not."""
_TRANSIENT = 3
"""The saved activations, and as much again twice for gradients and copies on their way."""


def samples_that_fit(model: nn.Module, inputs: Inputs, memory: int | None = None) -> int:
    """The batch size that `memory` holds for `gradient_norms`, at least 1.

    inputs: one sample or more, in dimension 0; the first is run forward, once.
    memory: bytes; by default 4 GiB on a CPU and 70% of what is free on a GPU.
    """
    held, outputs = held_by_one(model, inputs)
    found = tensors_in(outputs)
    if memory is None:
        device = found[0].device if found else torch.device("cpu")
        cuda = device.type == "cuda"
        memory = int(0.7 * torch.cuda.mem_get_info(device)[0]) if cuda else _CPU
    return max(1, memory // max(1, _TRANSIENT * sum(t.untyped_storage().nbytes() for t in held)))


def held_by_one(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], Any]:
    """What the first sample keeps in memory for the backward pass, and its outputs.

    Parameters and buffers are not among it; of views of one tensor there is one.
    """
    one = tree_map_only(Tensor, lambda t: t[:1].clone() if t.dim() else t, opened(inputs))
    held: dict[int, Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            held[place] = tensor.detach()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = call(model, one)
    return list(held.values()), outputs
