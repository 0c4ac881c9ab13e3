"""Products with a matrix: y = x W^T + b, over any leading dimensions.

    dL_n/dW = sum_s g_ns conj(x_ns)^T        dL_n/db = sum_s g_ns

over the positions s of sample n (Goodfellow 2015, arXiv:1510.01799, for one position; Rochette et
al. 2019, arXiv:1912.06015, for several). The gradient of a complex number z is 2 dL/d conj(z), as
autograd has it, so that the other factor of a product is conjugated.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core import matrix_products
from upslope.gradnorm.core.gradients.live_rows import live_rows_of_product, put_rows
from upslope.gradnorm.core.gradients.per_sample_gradients import (
    Dense,
    OuterProducts,
    PerSampleGradient,
    TransposedGradient,
)
from upslope.gradnorm.core.layouts.layout import Samples
from upslope.gradnorm.core.uses.tape import Kernel, Tape
from upslope.gradnorm.kernels.expand import expand_to_samples
from upslope.gradnorm.kernels.stacked_linear import stacked_matmul


class Linear(Kernel):
    """y = x W^T + b. weight: (o, i), or its transpose (i, o) where `is_transposed`; bias: (o,)."""

    name = "linear"
    makes_memory = True

    def __init__(
        self, tape: Tape, weight: Tensor, bias: Tensor | None, is_transposed: bool = False
    ):
        self.weight, self.bias, self.is_transposed = weight, bias, is_transposed
        self.weights = tape.weights.select_weights(weight, bias)
        # Detached: the kernel must leave no edge to the weight, or the batch's sum would be formed.
        self._w = weight.detach().mT if is_transposed else weight.detach()

    @property
    def joint_key(self) -> Hashable | None:
        """What is equal for products with one weight and bias; see `Kernel`."""
        if self.weights[0] is not self.weight:
            return None
        return id(self.weight), id(self.bias), self.is_transposed

    def apply(self, tape: Tape, x: Tensor) -> Tensor:
        """Return the product with x, (..., i) -> (..., o), on the tape."""
        if x.dim() == 1:  # a vector is one row: the kernel's positions and samples are rows
            return self.apply(tape, x[None])[0]
        if x.dim() == 2:
            self.dim = 0  # the weight acts on the other
        return tape.use(self, x)

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`. x: (..., i) -> (..., o)."""
        return matrix_products.linear(inputs[0], self._w, self.bias)

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        # Where the model itself enters autocast, that sees to forward passes alone.
        matrix = self._w.mT.conj().to(g.dtype)
        live = live_rows_of_product(g, len(matrix))
        if live is None:
            return (matrix_products.linear(g, matrix),)
        return (put_rows(matrix_products.linear(g[:, live], matrix), live, g.shape[1]),)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        for weight in self.weights:
            if weight is self.weight:
                outer = self._outer_products(samples.rows(inputs[0]), samples.rows(g))
                yield weight, TransposedGradient(outer) if self.is_transposed else outer
            else:
                yield weight, Dense(samples.sum_to_shape(g, weight.shape))

    @staticmethod
    def _outer_products(x: Tensor, g: Tensor) -> OuterProducts:
        """Return the gradients of W. x: (n, t, i), g: (n, t, o)."""
        live = live_rows_of_product(g, x.shape[2])
        if live is not None:
            x, g = x[:, live], g[:, live]
        return OuterProducts(x.conj().to(g.dtype), g)


def linear(tape: Tape, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Run `F.linear` by its kernel."""
    if weight.dim() != 2 or not tape.weights.are_in_their_places(input, weight, bias):
        return NotImplemented
    return Linear(tape, weight, bias).apply(tape, input)


def matmul(tape: Tape, input: Tensor, other: Tensor) -> Any:
    """`x @ W` for a vector, a matrix or a stack of them, and `W @ x`, by transposing both."""
    if tape.weights.is_weight(input):
        if tape.weights.is_weight(other) or 0 in (input.dim(), other.dim()):
            return NotImplemented
        if input.dim() == 1:
            return NotImplemented if other.dim() == 1 else matmul(tape, other.mT, input)
        if other.dim() == 1:
            return matmul(tape, other, tape.weights.view(input.mT))
        output = matmul(tape, other.mT, tape.weights.view(input.mT))
        return output if output is NotImplemented else output.mT
    if other.dim() == 1:
        return matmul(tape, input, tape.weights.view(other[:, None])).squeeze(-1)
    if other.dim() == 2:
        return Linear(tape, other, None, is_transposed=True).apply(tape, input)
    if input.dim() == 1:
        return NotImplemented
    if all(size == 1 for size in other.shape[:-2]):
        ahead = max(0, other.dim() - input.dim())
        matrix = tape.weights.view(other.reshape(other.shape[-2:]))
        return matmul(tape, input[(None,) * ahead], matrix)
    return stacked_matmul(tape, input, other)


def addmm(tape: Tape, input: Tensor, mat1: Tensor, mat2: Tensor, **scales: Any) -> Any:
    """Run `b + x @ W` by the kernel of a linear layer."""
    if scales or tape.weights.is_weight(mat1):
        return NotImplemented
    if tape.weights.is_weight(mat2):
        product = Linear(tape, mat2, None, is_transposed=True).apply(tape, mat1)
    else:
        product = mat1 @ mat2
    if tape.weights.is_weight(input):
        input = expand_to_samples(tape, input, product.shape)
    return torch.add(product, input)


def grouped_mm(
    tape: Tape,
    input: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """`torch._grouped_mm`, `F.grouped_mm`. input: (s, i), mat2: (e, i, o), offs: (e,) -> (s, o)."""
    if bias is not None or offs is None or input.dim() != 2 or mat2.dim() != 3:
        return NotImplemented
    if tape.weights.is_weight(input) or not tape.weights.is_weight(mat2):
        return NotImplemented
    bounds = [0, *offs.tolist()]
    if bounds[-1] != len(input):
        return NotImplemented
    tape.route()  # the data decide which rows are multiplied with which matrix
    products = [
        matmul(tape, input[a:b], tape.weights.view(matrix))
        for matrix, (a, b) in zip(mat2, itertools.pairwise(bounds), strict=True)
        if a < b
    ]
    return torch.cat(products).to(out_dtype or input.dtype) if products else NotImplemented
