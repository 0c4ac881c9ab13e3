"""Ordinary backward passes, by autograd alone, from the outputs of a model to its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

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
    # Copies: a custom function may write into the gradient that it is given, and the shares may be
    # pulled back again.
    gradients = [g.to(x.dtype, copy=True).reshape(x.shape) for x, g in pairs]
    # Such a checkpoint runs `backward` itself, and refuses `torch.autograd.grad`.
    if _has_reentrant_checkpoint(outputs):
        return _accumulate(outputs, gradients, parameters)
    return torch.autograd.grad(outputs, parameters, gradients, retain_graph=True, allow_unused=True)


def hand_out_gradients(
    ends: Sequence[Tensor],
    shares: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
    take: Callable[[str, Tensor], None],
) -> None:
    """Hand out the gradient of each parameter, and let it go before the next one is formed.

    Of a model with few activations, the gradients of all parameters are most of its memory.

    ends, shares: as of `pull_back`. parameters: name -> what is differentiated by. take: is given
    the name and the gradient of each parameter that is reached, once, in no particular order.
    """
    tensors = list(parameters.values())
    names_taken: set[str] = set()
    # A reentrant checkpoint hands on the gradient of a parameter in parts.
    is_whole = not _has_reentrant_checkpoint(ends)
    with _taking(parameters if is_whole else {}, take, names_taken):
        gradients = pull_back(ends, shares, tensors)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and name not in names_taken:
            take(name, gradient)


@contextlib.contextmanager
def _taking(
    parameters: Mapping[str, Tensor], take: Callable[[str, Tensor], None], names_taken: set[str]
) -> Iterator[None]:
    """Take the gradients of parameters as they come, and leave zeros without memory in their place.

    names_taken: gets the names of those that were taken.
    """

    def hook_of(name: str) -> Callable[[Tensor | None], Tensor | None]:
        def on_gradient(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:  # from an operator that has none, as a norm of order 0
                return None
            names_taken.add(name)
            take(name, gradient)
            # Autograd wants a gradient of the same type and shape.
            return None if gradient.is_sparse else gradient.new_zeros(()).expand(gradient.shape)

        return on_gradient

    before = [(p, p._backward_hooks) for p in parameters.values()]
    # Of what is made of others the gradient is still needed, and comes at the end.
    handles = [
        p.register_hook(hook_of(name))  # type: ignore[no-untyped-call]
        for name, p in parameters.items()
        if p.is_leaf
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for p, hooks in before:
            if hooks is None:
                p._backward_hooks = None


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
