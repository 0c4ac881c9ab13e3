"""Convolutions in one, two and three dimensions, and transposed ones: kernel and rules.

    y = conv(x, W) + b        dL_n/dW = the weight gradient of sample n by itself (see `methods`)
                              dL_n/db = sum of g_n over its positions

A transposed convolution is the input gradient of a convolution, so that its weight gradient is
that of the convolution with input and output gradient in each other's place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.half_precision import autocast_type
from upslope.gradnorm.core.layouts.layout import Layout, Samples, SamplesNotSeparable
from upslope.gradnorm.core.uses.tape import Kernel, Tape
from upslope.gradnorm.kernels.conv.arrangement import Arrangement, arrange
from upslope.gradnorm.kernels.conv.methods import ConvWeightGradient
from upslope.gradnorm.kernels.conv.operands import (
    ORDERS,
    Geometry,
    ReachedSignals,
    reached_signals,
)


class Convolution(Kernel):
    """y = conv(x, W) + b. x: (n, c, *space), W: (o, c / groups, *kernel).

    Of a transposed convolution, W: (c, o / groups, *kernel).
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
        self.output_padding = output_padding or (0,) * len(geometry.stride)
        self.is_transposed = output_padding is not None
        self._all_weights = tape.weights
        self._is_first = not tape.kernels
        self._arrangement: Arrangement | None = None
        self._matrix = weight
        """The weight as the matrix by which pixels were multiplied, if they were."""
        self.weights = tape.weights.select_weights(weight, bias)
        self.name = f"conv{'_transpose' if self.is_transposed else ''}{weight.dim() - 2}d"

    def arrange(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the input in the order of memory in which it is fastest; see `Kernel`."""
        x = inputs[0]
        arrangement = self._arrangement
        if arrangement is None:  # decided by the forward pass, for the backward pass as well
            arrangement = self._arrangement = arrange(
                x, self.weight, self.geometry,
                is_first=self._is_first, is_transposed=self.is_transposed,
            )  # fmt: skip
        order = arrangement.images
        if order is None:
            return inputs
        if arrangement.copies_images:
            return (x.clone(memory_format=order),)
        return (x.contiguous(memory_format=order),)

    @property
    def joint_key(self) -> Hashable | None:
        """What is equal for convolutions with one weight and bias; see `Kernel`."""
        if self.weights[0] is not self.weight:
            return None
        return id(self.weight), id(self.bias), self.geometry, self.is_transposed

    def _arranged_weight(self, arrangement: Arrangement) -> Tensor:
        """Return the weight in its order of memory.

        From another order than channels last the library makes its own layout up to ten times as
        slowly, where the numbers of channels are large powers of two.
        """
        if arrangement.weight is None:
            return self.weight
        return self._all_weights.in_memory_format(self.weight, arrangement.weight)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        x, arrangement = inputs[0], self._arrangement
        assert arrangement is not None
        weight, bias = self._arranged_weight(arrangement), self.bias
        half = autocast_type(x)
        # Of those that the model calls autocast has seen to already, but not of the one below.
        if half is not None:
            x, weight = x.to(half), weight.to(half)
            bias = None if bias is None else bias.to(half)
        if arrangement.is_product:
            self._matrix = weight.view(weight.shape[:2])
            return _multiply(x, self._matrix, bias, has_rows=arrangement.has_rows)
        s, p, d, groups = self.geometry
        y = torch.convolution(
            arrangement.batch(x), weight, bias,
            s, p, d, self.is_transposed, self.output_padding, groups,
        )  # fmt: skip
        return y[:1] if arrangement.is_one_volume else y

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        x, arrangement = inputs[0], self._arrangement
        assert arrangement is not None
        part = self._reached_part(x, g)
        if part is None:
            gradient = self._input_gradient(g, x, arrangement, self.geometry)
        else:
            of_part = self._input_gradient(part.g, part.x, arrangement, part.geometry)
            gradient = part.place(of_part, x.shape[2])
        order = arrangement.gradients
        return (gradient if order is None else gradient.contiguous(memory_format=order),)

    def _reached_part(self, x: Tensor, g: Tensor) -> ReachedSignals | None:
        if self.is_transposed or g.dim() != 3:
            return None
        return reached_signals(x, g, self.geometry, self.weight.shape)

    def _input_gradient(
        self, g: Tensor, x: Tensor, arrangement: Arrangement, geometry: Geometry
    ) -> Tensor:
        if arrangement.is_product:
            return _multiply(g, self._matrix.mT, None, has_rows=arrangement.has_rows)
        # Autocast sees to forward passes alone.
        weight = self._arranged_weight(arrangement)
        if x.dtype != g.dtype or weight.dtype != g.dtype:
            x, weight = x.to(g.dtype), weight.to(g.dtype)
        # Words under windows as wide as their vectors: oneDNN takes up to sixty times as long for
        # one channel that is marked as last.
        if x.shape[1] == g.shape[-1] == 1 < weight.shape[-1] and not self.is_transposed:
            x, weight = (t.reshape(-1).view(t.shape) for t in (x, weight))
        s, p, d, groups = geometry
        gradient: Tensor = torch.ops.aten.convolution_backward.default(
            arrangement.batch(g), arrangement.batch(x), weight, None,
            s, p, d, self.is_transposed, self.output_padding, groups, (True, False, False),
        )[0]  # fmt: skip
        return gradient[:1] if arrangement.is_one_volume else gradient

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        if samples.layout.dim != 0:
            raise SamplesNotSeparable("the samples of a convolution are not in its first dimension")
        x, geometry = inputs[0], self.geometry
        if x.dtype != g.dtype:
            x = x.to(g.dtype)
        part = self._reached_part(x, g)
        if part is not None:
            x, g, geometry, _ = part
        front = in_front(samples, g)  # (n, k, o, *space)
        for weight in self.weights:
            if weight is self.weight:
                images, y = in_front(samples, x), front
                if self.is_transposed:
                    images, y = front, self._with_border(images)
                yield weight, ConvWeightGradient(images, y, geometry, tuple(weight.shape))
            else:
                yield weight, Dense(sum_of_positions(front))

    def _with_border(self, images: Tensor) -> Tensor:
        """Return images (n, k, c, *space) that a transposed convolution takes, with zeros behind.

        Where a border of its output is as wide as its stride, that has room for more windows than
        there are images' positions.
        """
        pairs = zip(self.output_padding, self.geometry.stride, strict=True)
        behind = [border // stride for border, stride in pairs]
        if not any(behind):
            return images
        return F.pad(images, [side for after in reversed(behind) for side in (0, after)])


def in_front(samples: Samples, images: Tensor) -> Tensor:
    """(n, k, c, *space): the images of each sample, which are in dimension 0."""
    if images.shape[0] == samples.n and type(samples.layout) is Layout:
        return images.unsqueeze(1)  # one each, in whichever layout: asked of each use
    return samples.front(images)


def sum_of_positions(front: Tensor) -> Tensor:
    """(n, k, c, *space) -> (n, c)."""
    if front.shape[1] == 1:
        return front.squeeze(1).sum(dim=list(range(2, front.dim() - 1)))
    return front.sum(dim=(1, *range(3, front.dim())))


def _multiply(images: Tensor, matrix: Tensor, bias: Tensor | None, *, has_rows: bool) -> Tensor:
    """Return the products of the pixels of images (n, c, *space) with a matrix (o, c).

    has_rows: whether images and products, (n, o, *space), have their channels last in memory.
    """
    if has_rows:
        rows = images.contiguous(memory_format=ORDERS[images.dim()]).movedim(1, -1)
        products = F.linear(rows, matrix, bias).movedim(-1, 1)
    else:
        columns = images.contiguous().flatten(2)
        matrices = matrix.expand(len(columns), *matrix.shape)
        if bias is None:
            products = torch.bmm(matrices, columns)
        else:
            products = torch.baddbmm(bias[:, None], matrices, columns)
        products = torch.unflatten(products, 2, images.shape[2:])
    # No view of the product: nobody else has its memory, and the tape need not ask.
    return products.data


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
        if input.dim() != dimensions + 2 or weight.is_complex():
            return NotImplemented
        if not tape.weights.are_in_their_places(input, weight, bias):
            return NotImplemented
        if padding == "same":
            gaps = _per_dimension(dilation, dimensions)
            total = [(k - 1) * e for k, e in zip(weight.shape[2:], gaps, strict=True)]
            padding = tuple(t // 2 for t in total)
            if any(t % 2 for t in total):  # an odd row of padding goes to the end, as in torch
                ends = [(t // 2, t - t // 2) for t in total]
                input = F.pad(input, [side for pair in reversed(ends) for side in pair])
                padding = 0
        geometry = _geometry(
            dimensions,
            _hashable(stride),
            0 if isinstance(padding, str) else _hashable(padding),
            _hashable(dilation),
            groups,
        )
        return _run(tape, Convolution(tape, weight, bias, geometry, None), input)

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
        if input.dim() != dimensions + 2 or weight.is_complex():
            return NotImplemented
        if not tape.weights.are_in_their_places(input, weight, bias):
            return NotImplemented
        geometry = _geometry(
            dimensions, _hashable(stride), _hashable(padding), _hashable(dilation), groups
        )
        kernel = Convolution(
            tape, weight, bias, geometry, _per_dimension(output_padding, dimensions)
        )
        return _run(tape, kernel, input)

    return rule


def _run(tape: Tape, kernel: Convolution, input: Tensor) -> Tensor:
    """Return the output of the kernel on a batch, on the tape, in the faster memory format."""
    if tape.fusion is not None:
        return tape.fusion.on_convolution(tape, kernel, input)
    return tape.use(kernel, input)


@functools.lru_cache(1024)  # every layer of every batch asks
def _geometry(
    dimensions: int,
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
) -> Geometry:
    s, p, d = (_per_dimension(value, dimensions) for value in (stride, padding, dilation))
    return Geometry(s, p, d, groups)


def _hashable(value: int | Sequence[int]) -> int | tuple[int, ...]:
    return value if isinstance(value, (int, tuple)) else tuple(value)


def _per_dimension(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return one number per dimension, from one for all or from a sequence."""
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) * dimensions if len(value) == 1 else tuple(value)
