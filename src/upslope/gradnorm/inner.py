"""Inner products of each sample's gradient with one direction in parameter space.

    <grad_theta L(f(x_n)), v> = d/de L(f_{theta + e v}(x_n)) at e = 0

is a directional derivative: one forward pass in forward mode gives it for all samples, and no
gradient is formed (Eq. 1 is of this kind, with v = H^-1 times a test gradient). Where an operator
has no forward mode, differentiating the backward pass once more gives the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from upslope.errors import GradientNormError
from upslope.gradnorm.batch import Batch, Inputs
from upslope.gradnorm.losses import Loss, named
from upslope.gradnorm.outputs import check_losses


def gradient_inner_products(
    model: nn.Module, inputs: Inputs, loss: str | Loss, direction: Mapping[str, Tensor]
) -> Tensor:
    """<gradient of sample n's loss, direction>, (n,).

    direction: name of a parameter -> tensor of its shape; parameters left out count as zero.
    The other arguments are those of `gradient_norms`.

    Raises:
        GradientNormError: a name or shape that the model has not, or a loss that is not one number
            a sample.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in direction.items():
        expected = parameters[name].shape if name in parameters else None
        if tensor.shape != expected:
            raise GradientNormError(
                f"Expected `direction` to hold tensors shaped like the model's parameters but "
                f"{name!r} has {tuple(tensor.shape)} where the model has "
                f"{'no such parameter' if expected is None else tuple(expected)}."
            )
    loss = named(loss)
    values = {name: parameters[name].detach() for name in direction}
    # Fused attention has neither a forward mode nor a second derivative; its definition has both.
    with sdpa_kernel(SDPBackend.MATH):
        return _forward_mode(model, values, inputs, loss, direction)


def _forward_mode(
    model: nn.Module,
    values: Mapping[str, Tensor],
    inputs: Inputs,
    loss: Loss,
    direction: Mapping[str, Tensor],
) -> Tensor:
    try:
        with forward_ad.dual_level(), torch.no_grad():
            duals = {n: _dual(v, direction[n].to(v)) for n, v in values.items()}
            losses = _losses(model, duals, inputs, loss)
            tangent = forward_ad.unpack_dual(losses).tangent  # type: ignore[no-untyped-call]
        return torch.zeros_like(losses) if tangent is None else tangent
    except (NotImplementedError, RuntimeError):
        return _twice_backward(model, values, inputs, loss, direction)


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch's own use of what it deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        dual: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def _twice_backward(
    model: nn.Module,
    values: Mapping[str, Tensor],
    inputs: Inputs,
    loss: Loss,
    direction: Mapping[str, Tensor],
) -> Tensor:
    """d/du <grad sum_n u_n L_n, v>, which does not depend on u."""
    with torch.enable_grad():
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        losses = _losses(model, leaves, inputs, loss)
        u = torch.ones_like(losses, requires_grad=True)
        gradients = torch.autograd.grad(
            losses, list(leaves.values()), u, create_graph=True, materialize_grads=True
        )
        pairs = zip(leaves, gradients, strict=True)
        product = torch.stack([(g * direction[name].to(g)).sum() for name, g in pairs]).sum()
        (out,) = torch.autograd.grad(product, u, materialize_grads=True)
        return out


def _losses(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Inputs, loss: Loss
) -> Tensor:
    if isinstance(inputs, Mapping):
        outputs = functional_call(model, dict(parameters), (), dict(inputs))
    else:
        outputs = functional_call(model, dict(parameters), inputs)
    losses = loss(outputs)
    check_losses(losses.detach(), Batch.of(inputs).n)
    return losses
