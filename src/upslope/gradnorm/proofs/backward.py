"""Ordinary backward passes, by autograd alone, from the outputs of a model to its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def one_hot(like: Tensor, place: int) -> Tensor:
    """Return zeros but for a one."""
    share = torch.zeros_like(like)
    share[place] = 1
    return share


def pull_back(
    ends: Sequence[Tensor], shares: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the parameters from those at the outputs, by autograd alone.

    ends, shares: outputs with a graph, and a gradient for each; what has only zeros is left out, so
    that an output of which nothing is asked may have any shape. The graph is kept: parts of it may
    belong to a cache, of the model's or of its parametrisations.
    """
    # An output that the loss ignores may be of a type or size that has no gradient.
    pairs = [(x, g) for x, g in zip(ends, shares, strict=False) if bool(g.any())]
    if not pairs:
        return (None,) * len(parameters)
    outputs = [x for x, _ in pairs]
    gradients = [g.to(x.dtype).reshape(x.shape) for x, g in pairs]
    # Such a checkpoint runs `backward` itself, and refuses `torch.autograd.grad`.
    if _has_reentrant_checkpoint(outputs):
        return _accumulate(outputs, gradients, parameters)
    return torch.autograd.grad(outputs, parameters, gradients, retain_graph=True, allow_unused=True)


def _has_reentrant_checkpoint(outputs: Sequence[Tensor]) -> bool:
    """Whether the graph has a checkpoint that knows no gradients but those in `.grad`."""
    stack = [x.grad_fn for x in outputs]
    node_ids = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in node_ids:
            if node.name() == "CheckpointFunctionBackward":
                return True
            node_ids.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return False


def _accumulate(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """As `pull_back`, through `.grad`: reentrant checkpoints know no other way."""
    gradients_before = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(outputs, gradients, retain_graph=True)
        return tuple(p.grad for p in parameters)
    finally:
        for p, grad in zip(parameters, gradients_before, strict=True):
            p.grad = grad
