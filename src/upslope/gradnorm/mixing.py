"""Models that mix samples have no loss gradient for a single one, and are refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from upslope.errors import GradientNormError
from upslope.gradnorm.outputs import Inputs, batch_size, call, tensors_in


def refuse_mixing(model: nn.Module, inputs: Inputs, outputs: Any) -> None:
    """Raise if the outputs for the first sample change when it comes alone.

    outputs: of the whole batch, in full precision.

    Raises:
        GradientNormError: they do.
    """
    n = batch_size(inputs)

    def first(tensor: Tensor) -> Tensor:
        return (tensor[:1] if tensor.shape[:1] == (n,) else tensor).clone()

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        once, again = (
            tensors_in(call(model, tree_map_only(Tensor, first, inputs))) for _ in range(2)
        )
    if not all(torch.equal(a, b) for a, b in zip(once, again, strict=True)):
        return  # dropout and the like: nothing can be said
    for one, all_ in zip(once, tensors_in(outputs), strict=True):
        if all_.shape[:1] != (n,) or one.shape[:1] != (1,):
            continue
        scale = all_[:1].abs().max()
        tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 3e-2
        if (one - all_[:1].detach()).abs().max() > tolerance * scale + tolerance**2:
            raise GradientNormError(
                "Expected a model that treats each sample by itself but its output for the "
                f"first of {n} samples changes when that sample comes alone: the model mixes "
                "samples, so that none has a loss gradient of its own. Layers that normalise or "
                "attend over the batch must be in eval mode or be replaced."
            )
