"""Derivatives along a direction, products with a Hessian, and a model in eval mode for a while.

Also the tensors that a backward pass will need, by which batch sizes are estimated.

Used by `influence`, by signals and by whatever runs a model without training it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and afterwards each into its own mode again.

    model: the network; modules that are frozen in a mode of their own get it back.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def differentiating_twice(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, with attention by formulas that have second derivatives.

    model: the network; its modes, and PyTorch's switches, are as before afterwards.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def tensors_saved_for_backward(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect what the backward pass will need, beside parameters and buffers.

    model: the network that runs while the block does, on any device, "meta" among them.

    Yields: storage -> one of its tensors. Views of one tensor are there once.
    """
    storages = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    tensors: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Without its graph: an output that its own node holds is a circle that is never freed.
        without_graph = tensor.detach()
        # Addresses do not tell tensors on "meta" apart. The tensor is held, so that no other
        # storage takes its place.
        if (storage := without_graph.untyped_storage()._cdata) not in storages:
            tensors[storage] = without_graph
        return without_graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield tensors


def dot(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Return the inner product over all tensors. x, y: of the same shapes."""
    return torch.stack([(a * b).sum() for a, b in zip(x, y, strict=True)]).sum()


def directional_derivative(
    outputs: Tensor, parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> Tensor:
    """Return <grad outputs_i, direction> for every entry i, of the shape of `outputs`.

    By two backward passes, which more operators have than a forward-mode derivative: the gradient
    of u^T outputs is linear in u, so that its product with the direction has these entries as its
    gradient. Zero where an entry depends on none of the parameters.

    outputs: with their graph. parameters: what is differentiated by. direction: of their shapes.
    """
    u = torch.zeros_like(outputs, requires_grad=True)
    inner = dot(_gradients_with_graph(outputs, parameters, u), direction)
    if not inner.requires_grad:
        return torch.zeros_like(outputs)
    return torch.autograd.grad(inner, u, allow_unused=True, materialize_grads=True)[0]


def hessian_product(
    total: Tensor, parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return H v, with H the Hessian of `total` and v the direction, tensor by tensor.

    By two backward passes and not forward over backward: more operators know how.

    total: one number with its graph. parameters: what is differentiated by. direction: of their
    shapes.
    """
    inner = dot(_gradients_with_graph(total, parameters), direction)
    if not inner.requires_grad:  # linear in all parameters: the Hessian is zero
        return tuple(torch.zeros_like(p) for p in parameters)
    return torch.autograd.grad(inner, parameters, allow_unused=True, materialize_grads=True)


def _gradients_with_graph(
    outputs: Tensor, parameters: Sequence[Tensor], weights: Tensor | None = None
) -> Sequence[Tensor]:
    """Return the gradient of sum(weights * outputs) by each parameter, to be differentiated again.

    Zeros where the outputs do not depend on it.
    """
    if not outputs.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    return torch.autograd.grad(
        outputs, parameters, weights, create_graph=True, allow_unused=True, materialize_grads=True
    )
