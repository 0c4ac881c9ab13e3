"""Results of the kernels for one batch, noted while it is reduced, to be proven.

Gradients are compared by their inner products with one random direction each, without being formed:

    <G_n, V>        V = left (x) right, or any V of the weight's shape

A rank-one direction costs next to nothing: of sums of outer products, (g_s . left)(x_s . right). It
is as good as any other to tell two gradients apart: for G != H, <G - H, left (x) right> is a
polynomial in the random numbers that is zero almost nowhere. What has no cheap form is formed
densely.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import (
    PerSampleGradient,
)
from upslope.gradnorm.core.layouts.layout import Layout, Samples, SamplesNotSeparable
from upslope.gradnorm.core.layouts.separation import checksum
from upslope.gradnorm.core.uses.dense_sums import Uses, dense_sum
from upslope.gradnorm.core.uses.reductions import Reduction
from upslope.gradnorm.core.uses.tape import Kernel, Listener
from upslope.gradnorm.core.weights.weights import Weights


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

    def product(self, gradients: Tensor) -> Tensor:
        """Return the inner products (m,) with gradients (m, *shape) of a parameter.

        Of complex gradients, the sum of both parts counts.
        """
        flat = gradients.reshape(len(gradients), len(self.left), len(self.right))
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
            rows = [direction.product(dense) for _, dense in chunks]
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
    is_view = weight._base is parameter and parameter.is_contiguous() and weights.isometric(weight)
    if not (is_view and weight.dim() == 2):
        return None
    place = weight.size(), weight.stride(), weight.storage_offset() - parameter.storage_offset()
    return part.inner_products(direction.matrix(parameter.shape).as_strided(*place))


class ProofFailed(SamplesNotSeparable):
    """What the kernels found is not what autograd finds."""


class ProvenReduction:
    """A reduction that notes the inner products of gradients and directions on its way."""

    def __init__(self, reduction: Reduction):
        self.reduction, self.degree = reduction, reduction.degree
        self.products: dict[str, Tensor] = {}

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Reduce the sum of all uses of a parameter; see `Reduction`."""
        rows = self.reduction.of_uses(weights, name, uses, scratch)
        self.products[name] = inner_products(weights, name, uses, scratch)
        return rows

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:
        """Reduce gradients that are formed already; see `Reduction`.

        Of one parameter they come a few samples at a time, in order.
        """
        products = Direction.of(name, gradients[0]).product(gradients)
        before = self.products.get(name)
        self.products[name] = products if before is None else torch.cat([before, products])
        return self.reduction.of_dense(name, gradients)

    def sizes(self, name: str, gradients: Tensor) -> Tensor:
        """Return what the rounding of each row is proportional to; see `Reduction`."""
        return self.reduction.sizes(name, gradients)


class Checksums:
    """One random combination of the gradient that reaches each use, per sample."""

    def __init__(self, n: int, layouts: Mapping[int, Layout], kernels: Sequence[Kernel]):
        self.n, self.layouts, self.kernels = n, layouts, kernels
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}
        """use -> sums (n,), and the sizes of what was added, (n,)."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        """Take in the gradient that reached one use; see `Listener`."""
        kernel_layout = self.kernels[index].layout
        layout = kernel_layout or self.layouts.get(index)
        if self.n == 1 or layout is None:
            return
        # Of zeros no pass from some of the losses has told anything (`LayoutProbe.silent`).
        if kernel_layout is not None and not bool(g.any()):
            return
        # The second gradient is a part of the first one's backward pass: neither is that of a
        # loss.
        if index in self.sums:
            raise ProofFailed("a backward pass runs inside the backward pass of the model")
        self.sums[index] = checksum(Samples(self.n, layout).front(g))


class KernelGradients(NamedTuple):
    """What the kernels found of a batch, to be proven.

    rows: name -> (n, ...), the reduced gradients. products: name -> (n,), their inner products with
    directions. losses: (n,), of the same pass. kernels: the uses of weights, in order. repeats:
    whether another batch of the same program has its samples in the same places. ways: n of them,
    of which samples go alone together if they are equal.
    """

    rows: Mapping[str, Tensor]
    products: Mapping[str, Tensor]
    losses: Tensor
    kernels: Sequence[Kernel]
    repeats: bool
    ways: Sequence[Hashable]


class AllListeners:
    """Lets several listeners hear one backward pass, in this order."""

    def __init__(self, listeners: Sequence[Listener]):
        self._listeners = listeners

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Take in the gradient that reached one use; see `Listener`."""
        for listener in self._listeners:
            listener.on_gradient(index, g, inputs)
