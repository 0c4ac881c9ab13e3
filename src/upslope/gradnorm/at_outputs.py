"""The loss cut off from the network: its gradient at the outputs, and a loss that has it.

Where the loss of a sample depends on that sample's outputs alone, and on no parameter, the gradient
at the outputs says all that the network needs to know of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from upslope.gradnorm.layout import halves
from upslope.gradnorm.losses import Loss
from upslope.gradnorm.outputs import check_losses


def gradients_at_outputs(
    outputs: Any, parameters: Sequence[Tensor], n: int, loss: Loss
) -> list[Tensor] | None:
    """Gradients of the losses at the model's outputs, if they say all there is to say."""
    leaves, spec = tree_flatten(outputs)
    cut = [x.detach().requires_grad_() if differentiable(x) else x for x in leaves]
    ends = [x for x in cut if differentiable(x)]
    if not ends or any(x.shape[:1] != (n,) for x in ends):
        return None
    losses = loss(tree_unflatten(cut, spec))
    check_losses(losses, n)
    total = [torch.zeros_like(x) for x in ends]
    for kept in halves(n):
        found = torch.autograd.grad(
            losses, [*ends, *parameters], kept.to(losses), retain_graph=True, allow_unused=True
        )
        if any(g is not None for g in found[len(ends) :]):
            return None  # the loss has parameters of its own
        for sum_, g in zip(total, found, strict=False):
            if g is not None:
                if bool(g[~kept.to(g.device)].any()):
                    return None  # a sample's loss looks at the outputs of others
                sum_ += g
    return total


def with_gradients(gradients: Sequence[Tensor]) -> Loss:
    """A loss of value zero that has these gradients at the outputs, (n, ...) each."""

    def loss(outputs: Any) -> Tensor:
        ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
        given: Tensor = _Given.apply(gradients, *ends)  # type: ignore[no-untyped-call]
        return given

    return loss


class _Given(torch.autograd.Function):
    """Knows its gradient and nothing else. Not a product: outputs may be infinite."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *ends: Tensor) -> Tensor:
        ctx.gradients = gradients
        return ends[0].new_zeros(len(ends[0]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, share: Tensor) -> tuple[Any, ...]:
        own = (g * share.to(g).view(-1, *(1,) * (g.dim() - 1)) for g in ctx.gradients)
        return (None, *own)


def differentiable(leaf: Any) -> bool:
    """Whether a leaf of the outputs is a tensor with a graph behind it."""
    return isinstance(leaf, Tensor) and leaf.requires_grad
