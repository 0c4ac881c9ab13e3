"""The last resort: the gradient of one sample at a time, by ordinary means.

Always right, and slow. Where a sample's loss depends on that sample's output alone, a sample costs
a forward and a backward pass of its own; elsewhere a backward pass of the whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from upslope.gradnorm.at_outputs import differentiable, gradients_at_outputs
from upslope.gradnorm.losses import Loss
from upslope.gradnorm.outputs import Inputs, call, check_losses


def sample_by_sample(
    model: nn.Module,
    inputs: Inputs,
    outputs: Any,
    parameters: Sequence[Tensor],
    n: int,
    loss: Loss,
) -> Iterator[tuple[Tensor | None, ...]]:
    """The gradients of all parameters, for each sample in turn. outputs: the model's, of `inputs`.

    Raises:
        GradientNormError: the loss is not n finite numbers.
    """
    shares = None
    if not any(module.training for module in model.modules()):
        # In training mode a sample might meet other random numbers alone.
        shares = gradients_at_outputs(outputs, parameters, n, loss)
    if shares is None:
        losses = loss(outputs)
        check_losses(losses, n)
        for i in range(n):
            yield torch.autograd.grad(losses[i], parameters, retain_graph=True, allow_unused=True)
        return
    for i in range(n):
        own = tree_map_only(Tensor, functools.partial(_one, n=n, i=i), inputs)
        found = [x for x in tree_flatten(call(model, own))[0] if differentiable(x)]
        share = [g[i : i + 1] for g in shares]
        yield torch.autograd.grad(found, parameters, share, allow_unused=True)


def _one(tensor: Tensor, n: int, i: int) -> Tensor:
    return (tensor[i : i + 1] if tensor.shape[:1] == (n,) else tensor).clone()
