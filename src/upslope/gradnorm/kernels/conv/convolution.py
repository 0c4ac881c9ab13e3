"""Convolutions in one, two and three dimensions, and transposed ones: kernel and rules.

    y = conv(x, W) + b        dL_n/dW = the weight gradient of sample n by itself (see `part`)
                              dL_n/db = sum of g_n over its positions

A transposed convolution is the input gradient of a convolution, so that its weight gradient is
that of the convolution with input and output gradient in each other's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.layout import Samples, SamplesNotSeparable
from upslope.gradnorm.core.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.tape import Kernel, Tape
from upslope.gradnorm.kernels.conv.gradients import ORDERS, Geometry
from upslope.gradnorm.kernels.conv.methods import ConvWeightGradient
from upslope.gradnorm.torch_faults import is_unfolded, twice

_FEW_CHANNELS = 4
"""Channels up to which an image is always brought into the order with channels last: the copy is
small, and what follows stays in that order."""

_FEW_IMAGES = 16
"""Images from which PyTorch gives convolutions of single pixels to oneDNN in any case."""


class Convolution(Kernel):
    """y = conv(x, W) + b. x: (n, c, *space), W: (o, c / groups, *kernel).

    TransposedGradient, W: (c, o / groups, *kernel).
    """

    def __init__(
        self,
        tape: Tape,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        output_padding: Sequence[int] | None,
    ):
        self.weight, self.bias, self.geometry = weight, bias, geometry
        self.output_padding = list(output_padding or [0] * len(geometry.stride))
        self.is_transposed = output_padding is not None
        self.dtype = tape.options.dtype
        self._all_weights = tape.weights
        self._is_first = not tape.kernels
        self.weights = tape.weights.select_weights(weight, bias)
        self.name = f"conv{'_transpose' if self.is_transposed else ''}{weight.dim() - 2}d"

    def arrange(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the input with its channels last, unless it stays plain; see `Kernel`."""
        x = inputs[0]
        order = ORDERS.get(x.dim())
        if order is None or self._stays_plain(x):
            return inputs
        # With one channel both orders have the same strides; only a copy marks it as last.
        if x.shape[1] == 1:
            return (x.clone(memory_format=order),)
        return (x.contiguous(memory_format=order),)

    def _stays_plain(self, x: Tensor) -> bool:
        """Whether images with positions last in memory are left as they are.

        Within a network some operator has made them so: an instance normalisation, or gates each of
        which is a part of the channels. It would make them so again, or be slow with channels last.
        """
        return (
            x.dim() == 4
            and x.shape[1] > _FEW_CHANNELS
            and not self._is_first
            and math.prod(self.weight.shape[2:]) > 1
            and x.is_contiguous()
            and not x.is_contiguous(memory_format=torch.channels_last)
        )

    def _weight_for(self, x: Tensor) -> Tensor:
        """Return the weight in the order of memory of the images."""
        if self._stays_plain(x):
            weight = self.weight if self.dtype is None else self.weight.to(self.dtype)
            return self._all_weights.in_memory_format(weight, torch.contiguous_format)
        return self.channels_last_weight()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        x, weight = inputs[0], self._weight_for(inputs[0])
        # `torch.convolution` wants a bias of the weight's type.
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        if self._is_product(x, weight):
            return _rows_times(x, weight.detach().view(weight.shape[:2]), bias)
        s, p, d, groups = self.geometry
        is_one_volume = is_unfolded(x)
        y = torch.convolution(
            twice(x) if is_one_volume else x, weight, bias,
            s, p, d, self.is_transposed, self.output_padding, groups,
        )  # fmt: skip
        return y[:1] if is_one_volume else y

    def _is_product(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the convolution of x is done as one product of all pixels with a matrix.

        For few images and one thread PyTorch multiplies image by image, a tenth slower. oneDNN's
        products are faster still, and what it keeps for each shape takes 150 MB in a RegNet.
        """
        s, p, _, groups = self.geometry
        return (
            x.dim() == 4
            and len(x) < _FEW_IMAGES
            and torch.get_num_threads() == 1
            and x.device.type == "cpu"
            and not self.is_transposed
            and groups == 1
            and weight.shape[2:] == (1, 1)
            and s == (1, 1)
            and p == (0, 0)
            and x.dtype == weight.dtype
            and not torch.is_autocast_enabled("cpu")  # under which the type is another one
        )

    def channels_last_weight(self) -> Tensor:
        """Return the weight in channels-last order, from which the library makes its own layout.

        From other orders it is up to ten times as slow, where the numbers of channels are large
        powers of two.
        """
        # The type of the products that the caller asked for: half precision, where it is faster.
        weight = self.weight if self.dtype is None else self.weight.to(self.dtype)
        order = ORDERS.get(weight.dim())
        return weight if order is None else self._all_weights.in_memory_format(weight, order)

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        x, weight = inputs[0], self._weight_for(inputs[0])
        if self._is_product(x, weight):
            return (_rows_times(g, weight.detach().view(weight.shape[:2]).mT, None),)
        s, p, d, groups = self.geometry
        is_one_volume = is_unfolded(x)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            twice(g) if is_one_volume else g, twice(x) if is_one_volume else x, weight, None,
            s, p, d, self.is_transposed, self.output_padding, groups, (True, False, False),
        )[0]  # fmt: skip
        return (gradient[:1] if is_one_volume else gradient,)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        if samples.layout.dim != 0:
            raise SamplesNotSeparable("the samples of a convolution are not in its first dimension")
        front = samples.front(g)  # (n, k, o, *space)
        for weight in self.weights:
            if weight is self.weight:
                pair = samples.front(inputs[0]), front
                x, y = reversed(pair) if self.is_transposed else pair
                yield weight, ConvWeightGradient(x, y, self.geometry, tuple(weight.shape))
            else:
                yield weight, Dense(front.sum(dim=(1, *range(3, front.dim()))))


def _rows_times(images: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return the products of the pixels of images (n, c, h, w) with a matrix (o, c), (n, o, h, w).

    Images and products have their channels last in memory.
    """
    rows = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return F.linear(rows, matrix, bias).permute(0, 3, 1, 2)


def convolution(dimensions: int) -> Callable[..., Any]:
    """Return the rule of `torch.conv1d`, `conv2d` or `conv3d`."""

    def rule(
        tape: Tape,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Any:
        if tape.weights.is_weight(input) or weight.is_complex():
            return NotImplemented
        s, d = _per_dimension(stride, dimensions), _per_dimension(dilation, dimensions)
        if padding == "same":
            # An odd row of padding goes to the end, as in torch.
            total = [(k - 1) * e for k, e in zip(weight.shape[2:], d, strict=True)]
            ends = [(t // 2, t - t // 2) for t in total]
            input = F.pad(input, [side for pair in reversed(ends) for side in pair])
            padding = 0
        p = _per_dimension(0 if isinstance(padding, str) else padding, dimensions)
        kernel = Convolution(tape, weight, bias, Geometry(s, p, d, groups), None)
        return _run(tape, kernel, input, dimensions)

    return rule


def transposed_convolution(dimensions: int) -> Callable[..., Any]:
    """Return the rule of `torch.conv_transpose1d`, `conv_transpose2d` or `conv_transpose3d`."""

    def rule(
        tape: Tape,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Any:
        if tape.weights.is_weight(input) or weight.is_complex():
            return NotImplemented
        s, p, d = (_per_dimension(v, dimensions) for v in (stride, padding, dilation))
        geometry = Geometry(s, p, d, groups)
        kernel = Convolution(
            tape, weight, bias, geometry, _per_dimension(output_padding, dimensions)
        )
        return _run(tape, kernel, input, dimensions)

    return rule


def _run(tape: Tape, kernel: Convolution, input: Tensor, dimensions: int) -> Tensor:
    """Return the output of the kernel on a batch, on the tape, in the faster memory format."""
    if input.dim() != dimensions + 2:
        raise SamplesNotSeparable(f"`{kernel.name}` takes one image, without a dimension of them")
    # Input and weight must have one type: that of the products.
    input = input if kernel.dtype is None else input.to(kernel.dtype)
    if tape.fusion is not None:
        return tape.fusion.on_convolution(kernel, input)
    return tape.use(kernel, input)


def _per_dimension(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return one number per dimension, from one for all or from a sequence."""
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) * dimensions if len(value) == 1 else tuple(value)
