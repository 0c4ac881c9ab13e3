"""Inner products of each sample's gradient with one direction in parameter space.

    <grad_theta L(f(x_n)), v> = d/de L(f_{theta + e v}(x_n)) at e = 0

From the same passes as the norms, and proven as they are: no gradient of a matrix or a convolution
is formed, for <sum_s g_s x_s^T, V> = sum_s g_s^T V x_s. (Eq. 1 is of this kind, with v = H^-1 times
a test gradient.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm.arguments import Call, refuse_infinite
from upslope.gradnorm.core.model_io import Inputs, Loss, in_words, require_module
from upslope.gradnorm.core.state.restoring import in_turn
from upslope.gradnorm.core.uses.dense_sums import Uses, dense_sum
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.losses import resolve_loss


@in_turn
def gradient_inner_products(
    model: nn.Module,
    inputs: Inputs,
    loss: str | Loss,
    direction: Mapping[str, Tensor],
    *,
    max_memory: int | None = None,
) -> Tensor:
    """Return the inner products of each sample's gradient and a direction, (n,) float64.

    model, inputs, loss, max_memory: as of `gradient_norms`.
    direction: name of a parameter -> tensor of its shape; parameters left out count as zero. For
        complex parameters both parts count, as in a derivative along the direction.

    Raises:
        GradientNormError: as `gradient_norms`; a name or shape that the model has not, a parameter
            that does not require a gradient, or numbers that are not finite in its type.
    """
    require_module(model)
    parameters = dict(model.named_parameters())
    if not isinstance(direction, Mapping):
        raise GradientNormError(
            "Expected `direction` to be a dict of names of parameters and tensors but got "
            f"{in_words(direction)}. `dict(model.named_parameters())` has the names and shapes."
        )
    for name, tensor in direction.items():
        if not isinstance(tensor, Tensor):
            raise GradientNormError(
                f"Expected `direction` to hold tensors but {name!r} is {in_words(tensor)}."
            )
        shape = parameters[name].shape if name in parameters else None
        if tensor.shape != shape:
            raise GradientNormError(
                f"Expected `direction` to hold tensors shaped like the model's parameters but "
                f"{name!r} has {tuple(tensor.shape)} where the model has "
                f"{'no such parameter' if shape is None else tuple(shape)}."
            )
        if not parameters[name].requires_grad:
            raise GradientNormError(
                f"Expected `direction` to name parameters that require a gradient but {name!r} "
                "does not. Leave it out, or unfreeze it with `requires_grad_(True)`."
            )
    call = Call.of(model, inputs, direction.keys(), max_memory)
    along = {
        name: _as_parameter(name, direction[name], p) for name, p in call.weights.parameters.items()
    }
    rows = call.reduce(_InnerProducts(along), resolve_loss(loss))
    # Parts of either sign cancel: float32 would lose their digits.
    products = torch.stack([row.double() for row in rows.values()]).sum(dim=0)
    refuse_infinite(products, "inner products")
    return products


def _as_parameter(name: str, direction: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return a direction as the parameter is: it may lie on another device, or be of another type.

    Raises:
        GradientNormError: some of its numbers are not finite in that type, or it is complex and the
            parameter is not.
    """
    if direction.is_complex() and not parameter.is_complex():
        raise GradientNormError(
            f"Expected `direction` to hold real numbers for {name!r}, a parameter of type "
            f"{parameter.dtype}, but got {direction.dtype}. Give `.real`, or what you mean by it."
        )
    along = direction.detach().to(parameter)
    if not bool(torch.isfinite(along).all()):
        raise GradientNormError(
            f"Expected `direction` to hold finite numbers but some of {name!r} are not, as numbers "
            f"of type {parameter.dtype}. Scale it down: inner products are linear in it."
        )
    return along


class _InnerProducts:
    """Inner products with a direction, (n,), as a `Reduction`."""

    degree = 1

    def __init__(self, direction: Mapping[str, Tensor]):
        self.direction = direction

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Sum over all uses of the parameter `name`: inner products are linear."""
        v = self.direction[name]
        total: Tensor | None = None
        for weight, part in uses:
            cheap = weights.tracks(weight) and not v.is_complex()
            product = part.inner_products(v) if cheap else None
            if product is None:
                pieces = dense_sum(weights, name, [(weight, part)], scratch)
                product = torch.cat([self.of_dense(name, rows) for _, rows in pieces])
            total = product if total is None else total + product
        assert total is not None
        return total

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:
        """Return the inner products (m,) of gradients that are there, (m, *shape)."""
        v = self.direction[name]
        if gradients.is_complex():
            gradients, v = torch.view_as_real(gradients.resolve_conj()), torch.view_as_real(v)
        return gradients.flatten(1).to(v.dtype) @ v.flatten() if v.dim() else gradients * v

    def sizes(self, name: str, gradients: Tensor) -> Tensor:
        """Return the products of the norms, (m,): what is summed may cancel to nothing."""
        norm: Tensor = torch.linalg.vector_norm(self.direction[name])
        sizes: Tensor = torch.linalg.vector_norm(gradients.reshape(len(gradients), -1), dim=1)
        return sizes * norm
