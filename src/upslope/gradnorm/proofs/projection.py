"""Inner products of per-sample gradients with one random direction, without forming them.

    <G_n, V>        V = left (x) right, or any V of the weight's shape

A rank-one direction costs next to nothing: of sums of outer products, (g_s . left)(x_s . right). It
is as good as any other to tell two gradients apart: for G != H, <G - H, left (x) right> is a
polynomial in the random numbers that is zero almost nowhere. The engine's proofs are made of these
(`proof`), and kernels that have no cheap form are formed densely.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.gradnorm.core.per_sample_gradients import (
    PerSampleGradient,
)
from upslope.gradnorm.core.reductions import Uses, dense_sum
from upslope.gradnorm.core.weights import Weights


@dataclass(frozen=True)
class Direction:
    """A random direction for a parameter, left (x) right.

    left: (rows,). right: (numel / rows,).
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, name: str, parameter: Tensor) -> Direction:
        """Draw a direction for a parameter, always the same one for this name."""
        rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        rows = parameter.shape[0] if parameter.dim() > 1 else 1
        sizes = (rows, parameter.numel() // max(1, rows))
        # In half precision the direction itself would round; float32 does no harm to either side.
        double = parameter.dtype in (torch.float64, torch.complex128)
        dtype = torch.float64 if double else torch.float32
        left, right = (torch.randn(size, generator=rng, dtype=dtype) for size in sizes)
        return cls(left.to(parameter.device), right.to(parameter.device))

    def product(self, gradients: Tensor, rank: int) -> Tensor:
        """Return the inner products (m,) with gradients (m, *shape) of a parameter.

        rank: its number of dimensions. Of complex gradients, the sum of both parts counts.
        """
        flat = gradients.reshape(len(gradients), len(self.left), -1) if rank else gradients
        flat = flat.reshape(len(gradients), len(self.left), len(self.right))
        flat = flat.real + flat.imag if flat.is_complex() else flat
        return (flat.to(self.left.dtype) @ self.right) @ self.left

    def matrix(self, shape: Sequence[int]) -> Tensor:
        """Return the direction itself as a matrix."""
        return torch.outer(self.left, self.right).view(tuple(shape))


def inner_products(weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
    """(n,): of the sum of all uses of the parameter `name` with its direction."""
    parameter = weights.parameters[name]
    direction = Direction.of(name, parameter)
    total: Tensor | None = None
    for weight, part in uses:
        product = _cheap(weights, parameter, weight, part, direction)
        if product is None:
            chunks = dense_sum(weights, name, [(weight, part)], scratch)
            rows = [direction.product(dense, parameter.dim()) for _, dense in chunks]
            product = torch.cat(rows)
        total = product if total is None else total + product
    assert total is not None
    return total


def _cheap(
    weights: Weights,
    parameter: Tensor,
    weight: Tensor,
    part: PerSampleGradient,
    direction: Direction,
) -> Tensor | None:
    """The product without forming the gradients; None where there is no such way."""
    # Complex products conjugate one factor; formed densely there is one rule for all.
    if parameter.is_complex() or weight.is_complex() or parameter.dim() < 2:
        return None
    if weight is parameter:
        return part.rank_one_products(direction.left, direction.right)
    # A slice or a transpose: its entries are entries of the direction, in the same strides.
    viewed = weight._base is parameter and parameter.is_contiguous() and weights.isometric(weight)
    if not (viewed and weight.dim() == 2):
        return None
    place = weight.size(), weight.stride(), weight.storage_offset() - parameter.storage_offset()
    return part.inner_products(direction.matrix(parameter.shape).as_strided(*place))
