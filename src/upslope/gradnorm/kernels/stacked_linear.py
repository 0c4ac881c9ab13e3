"""Products with a stack of matrices, one for each group: y_k = x_k W_k, a batched product.

    dL_n/dW_k = sum_s conj(x_nks)^T g_nks        over the positions s of sample n in group k

Experts, heads, capsules and layers that share no weights between places are of this kind. All
groups go at once, as rows of one batched product: a use for each would cost as many calls as there
are groups. Called by `linear`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts, PerSampleGradient
from upslope.gradnorm.core.layouts.layout import Samples, SamplesNotSeparable
from upslope.gradnorm.core.uses.tape import Kernel, Tape


class StackedLinear(Kernel):
    """y = x W for each group. x: (k, r, i), W: (k, i, o); the rows r are of any samples."""

    name = "matmul of a stack"
    dim = 1

    def __init__(self, weight: Tensor):
        self.weights = (weight,)
        self._matrices = weight.detach()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        return torch.bmm(inputs[0], self._matrices)

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        # Where the model itself enters autocast, that sees to forward passes alone.
        return (torch.bmm(g, self._matrices.mH.to(g.dtype)),)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        x, g = (_rows_by_group(t, samples) for t in (inputs[0].to(g.dtype), g))
        yield self.weights[0], StackedGradient(OuterProducts(g, x.conj()), samples.n)


def _rows_by_group(tensor: Tensor, samples: Samples) -> Tensor:
    """Return the rows of each sample in each group, (k, r, i) -> (k n, r / n, i)."""
    if samples.n == 1:
        return tensor
    if (samples.layout.dim, samples.layout.last) != (1, 1):
        raise SamplesNotSeparable("a weight has matrices for single samples of the batch")
    return samples.front(tensor).permute(2, 0, 1, 3).flatten(0, 1)


@dataclass(frozen=True)
class StackedGradient(PerSampleGradient):
    """The gradients of a stack of matrices. products: of each sample in each group, k n of them."""

    products: OuterProducts
    n: int

    def __len__(self) -> int:
        return self.n

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        return self.products.squared_norms(scratch).view(-1, self.n).sum(dim=0)

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        g, x = self._by_group()
        return (x[:, rows].mT @ g[:, rows]).movedim(1, 0)

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """Return the sum with other gradients; see `PerSampleGradient`."""
        same = [other.products for other in others if isinstance(other, StackedGradient)]
        total = self.products.add(same) if len(same) == len(others) else None
        return StackedGradient(total, self.n) if isinstance(total, OuterProducts) else None

    def in_double(self) -> StackedGradient:
        """Return the gradients in float64; see `PerSampleGradient`."""
        return StackedGradient(self.products.in_double(), self.n)

    def inner_products(self, v: Tensor) -> Tensor | None:
        """Return the inner products with a direction; see `PerSampleGradient`."""
        g, x = self._by_group()
        return ((x.to(v.dtype) @ v[:, None]) * g).sum(dim=(0, 2, 3))

    def cost(self) -> tuple[str, float]:
        """Return the method of the norm, and what it costs; see `PerSampleGradient`."""
        method, cost = self.products.cost()
        return method, cost * (len(self.products) // max(1, self.n))

    def _by_group(self) -> tuple[Tensor, Tensor]:
        """Return g and x, (k, n, s, ...) each."""
        g, x = self.products.x, self.products.g
        sizes = (-1, self.n)
        return torch.unflatten(g, 0, sizes), torch.unflatten(x, 0, sizes)


def stacked_matmul(tape: Tape, x: Tensor, stack: Tensor) -> Any:
    """Return x @ W for a stack of matrices W, (..., i, o), broadcast as by `torch.matmul`.

    x: (..., t, i), of samples. Along dimensions in which the stack has one entry, or none, x has
    positions; along the others, it has groups.
    """
    rank = max(x.dim(), stack.dim())
    x = x[(None,) * (rank - x.dim())]
    sizes = (1,) * (rank - stack.dim()) + tuple(stack.shape[:-2])
    groups = [dim for dim, size in enumerate(sizes) if size != 1]
    if any(x.shape[dim] not in (1, sizes[dim]) for dim in groups):
        return NotImplemented  # which torch refuses
    positions = [dim for dim in range(rank - 1) if dim not in groups]
    order = (*groups, *positions, rank - 1)
    x = x.expand([sizes[dim] if dim in groups else x.shape[dim] for dim in range(rank)])
    x = x.permute(order)
    shape, count = x.shape[:-1], math.prod(sizes)
    kernel = StackedLinear(tape.weights.view(stack.reshape(count, *stack.shape[-2:])))
    rows = x.reshape(count, math.prod(shape[len(groups) :]), x.shape[-1])
    y = tape.use(kernel, rows)
    back = sorted(range(rank), key=order.__getitem__)
    return y.reshape(*shape, stack.shape[-1]).permute(back)
