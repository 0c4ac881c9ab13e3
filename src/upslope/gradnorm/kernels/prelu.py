"""Rectifiers with a learned slope: y = x where x > 0, w x elsewhere.

dL_n/dw = sum of g x where x <= 0, over the positions of sample n
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.layouts.layout import Samples
from upslope.gradnorm.core.uses.tape import Kernel, Tape
from upslope.gradnorm.kernels.norm import Affine


class PReLU(Kernel):
    """y = x where x > 0, w x elsewhere. x: (n, c, ...), w: (c,) or (1,)."""

    name = "prelu"

    def __init__(self, tape: Tape, weight: Tensor, shape: tuple[int, ...]):
        self.weights = tape.weights.select_weights(weight)
        self._slopes = weight.detach().view(shape)
        self._shape = shape
        self._pair: tuple[Tensor, Tensor] | None = None
        """A gradient of the output and that of the input, which are computed together."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        y: Tensor = torch.ops.aten._prelu_kernel(inputs[0], self._slopes)
        return y

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        pair, self._pair = self._pair, None
        if pair is not None and pair[0] is g:
            return (pair[1],)
        return (torch.where(inputs[0] > 0, g, g * self._slopes),)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        # One reading of x and g has both; the gradient of the input is asked for next.
        gradient, slopes = torch.ops.aten._prelu_kernel_backward(g, inputs[0], self._slopes)
        self._pair = g, gradient
        for weight in self.weights:
            values = samples.sum_to_shape(slopes, self._shape)
            yield weight, Dense(values.reshape(samples.n, *weight.shape))


def prelu(tape: Tape, input: Tensor, weight: Tensor) -> Any:
    """`torch.prelu`: x where positive, w * x elsewhere."""
    if not tape.weights.are_in_their_places(input, weight):
        return NotImplemented
    shape = (1,) * input.dim()
    if weight.numel() > 1:
        shape = (input.shape[1], *(1,) * (input.dim() - 2))
    if weight.dtype != input.dtype:
        product = tape.use(Affine(tape, weight, None, shape), input)
        return torch.where(input > 0, input, product)
    return tape.use(PReLU(tape, weight, shape), input)
