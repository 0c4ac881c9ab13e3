"""Normalisation layers in which no sample sees another: y = xhat * w + b.

    dL_n/dw = sum of g * xhat        dL_n/db = sum of g        over the positions of sample n

Layer and group normalisation are frequent: their kernels include the computation of xhat. In
instance and root-mean-square normalisation autograd differentiates xhat, which has no weights, and
`Affine` is the kernel of scale and shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from upslope.gradnorm.core.chunks import CACHE, chunks, has_caches
from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.layouts.layout import Samples, SamplesNotSeparable
from upslope.gradnorm.core.uses.tape import Kernel, Tape
from upslope.gradnorm.torch_faults import run_exactly

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class Affine(Kernel):
    """y = x * w + b, where w and b are reshaped to `shape`, which broadcasts to that of x."""

    name = "affine"

    def __init__(
        self, tape: Tape, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]
    ):
        bias = tape.weights.apart(bias, weight)
        self.weight, self.bias, self.shape = weight, bias, tuple(shape)
        self.weights = tape.weights.select_weights(weight, bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        x = inputs[0]
        if self.weight is None:
            assert self.bias is not None
            return x + self.bias.view(self.shape)
        if self.bias is None:
            return x * self.weight.view(self.shape)
        return torch.addcmul(self.bias.view(self.shape), x, self.weight.view(self.shape))

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        return (g if self.weight is None else g * self.weight.detach().view(self.shape),)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        for weight in self.weights:
            product = g * inputs[0] if weight is self.weight else g
            values = samples.sum_to_shape(product, self.shape)
            yield weight, Dense(values.reshape(samples.n, *weight.shape))


class LayerNorm(Kernel):
    """y = (x - mean) / std * w + b over the last dimensions, `shape`; w and b have that shape."""

    name = "layer_norm"

    def __init__(self, tape: Tape, weight: Tensor, bias: Tensor, shape: Sequence[int], eps: float):
        self.weight, self.shape, self.eps = weight, tuple(shape), eps
        self.bias = tape.weights.apart(bias, weight)
        self.weights = tape.weights.select_weights(weight, self.bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        y, self.mean, self.rstd = torch.native_layer_norm(
            inputs[0], self.shape, self.weight, self.bias, self.eps
        )
        return y

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        gradient, _, _ = _layer_norm_backward(
            g, inputs[0], self.shape, self.mean, self.rstd, self.weight, self.bias,
            (True, False, False),
        )  # fmt: skip
        return (gradient,)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        for weight in self.weights:
            if weight is self.weight:
                keep = len(self.shape)
                rows = [samples.rows(t, keep) for t in (g, inputs[0], self.mean, self.rstd)]
                if keep > 1:
                    rows = [t.flatten(2) for t in rows]
                scale = _scale_gradient(*rows)
                yield weight, Dense(scale if keep == 1 else scale.view(samples.n, *self.shape))
            else:
                yield weight, Dense(samples.sum_to_shape(g, self.shape))


def _scale_gradient(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Return sum_t g (x - mean) rstd, (n, e). g, x: (n, t, e), mean, rstd: (n, t, 1)."""
    size = 3 * g.numel() * g.element_size()
    if size > CACHE // 2 and has_caches(g) and (n := g.shape[0]) > 1:
        pieces = chunks(n, size // n, CACHE // 2)
        return torch.cat([_scale_gradient(g[c], x[c], mean[c], rstd[c]) for c in pieces])
    # The mean goes first: to subtract sums in its place would cancel where it is far from zero.
    return torch.sub(x, mean).mul_(rstd).mul_(g).sum(dim=1)


def _scale_and_shift(
    tape: Tape, xhat: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]
) -> Tensor:
    """Return xhat * w + b, in the type of xhat: half precision may have both in float32."""
    return tape.use(Affine(tape, weight, bias, shape), xhat).to(xhat.dtype)


def layer_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001
) -> Any:
    """Run `torch.layer_norm` by its kernel."""
    if not tape.weights.are_in_their_places(input, weight, bias):
        return NotImplemented
    if weight is not None and bias is not None and weight.dtype == input.dtype:
        return tape.use(LayerNorm(tape, weight, bias, normalized_shape, eps), input)
    xhat = torch.nn.functional.layer_norm(input, normalized_shape, eps=eps)
    return _scale_and_shift(tape, xhat, weight, bias, normalized_shape)


def rms_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor,
    eps: float | None = None,
) -> Any:
    """Run `torch.rms_norm` by its kernel."""
    if not tape.weights.are_in_their_places(input, weight):
        return NotImplemented
    xhat = torch.rms_norm(input, normalized_shape, None, eps)
    return tape.use(Affine(tape, weight, None, normalized_shape), xhat)


class GroupNorm(Kernel):
    """y = (x - mean) / std * w + b, in each of `groups` groups of channels. x: (n, c, ...).

    With means m and 1 / std r of the channel's group: dL_n/dw = r (sum g x - m sum g).
    """

    name = "group_norm"

    def __init__(self, tape: Tape, weight: Tensor, bias: Tensor, groups: int, eps: float):
        self.weight, self.groups, self.eps = weight, groups, eps
        self.bias = tape.weights.apart(bias, weight)
        self.weights = tape.weights.select_weights(weight, self.bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        x = inputs[0]
        sizes = (len(x), x.shape[1], math.prod(x.shape[2:]))
        y, self.mean, self.rstd = torch.native_group_norm(
            x.contiguous(memory_format=_order(x)),
            self.weight, self.bias, *sizes, self.groups, self.eps,
        )  # fmt: skip
        return y

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        order = _order(inputs[0])
        x, g = (t.contiguous(memory_format=order) for t in (inputs[0], g))
        gradient, _, _ = torch.ops.aten.native_group_norm_backward(
            g, x, self.mean, self.rstd, self.weight, len(x), x.shape[1], math.prod(x.shape[2:]),
            self.groups, (True, False, False),
        )  # fmt: skip
        return (gradient,)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        if samples.layout.last > 0:
            raise SamplesNotSeparable("samples lie in a dimension of a group's entries")
        shift = _sum_of_positions(g)
        for weight in self.weights:
            of_rows = shift
            if weight is self.weight:
                scale = _sum_of_positions(g * inputs[0])
                mean, rstd = self.mean, self.rstd  # (rows, groups), or (rows, 1) as it should be
                if self.groups > 1:
                    width = scale.shape[1] // self.groups
                    mean, rstd = (t.repeat_interleave(width, dim=1) for t in (mean, rstd))
                of_rows = torch.addcmul(scale, mean, shift, value=-1).mul(rstd)
            # Frames of a video may be rows of their own.
            yield weight, Dense(samples.sum_to_shape(of_rows, weight.shape))


def _sum_of_positions(values: Tensor) -> Tensor:
    """Return the sums over all positions, (n, c, ...) -> (n, c)."""
    return values.sum(dim=tuple(range(2, values.dim()))) if values.dim() > 2 else values


def _order(x: Tensor) -> torch.memory_format:
    """Return the memory format of x: channels last, or contiguous.

    Where a dimension has size one, both may be right, and the operator insists on the one by which
    PyTorch would call it.
    """
    last = suggest_memory_format(x) is torch.channels_last
    return torch.channels_last if last else torch.contiguous_format


def group_norm(
    tape: Tape,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001
) -> Any:
    """`torch.group_norm`. input: (n, c, ...)."""
    if not tape.weights.are_in_their_places(input, weight, bias):
        return NotImplemented
    if weight is not None and bias is not None and weight.dtype == input.dtype:
        return tape.use(GroupNorm(tape, weight, bias, num_groups, eps), input)
    xhat = torch.group_norm(input, num_groups, None, None, eps)
    return _scale_and_shift(tape, xhat, weight, bias, _channels(input))


def instance_norm(
    tape: Tape,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """`torch.instance_norm`. input: (n, c, ...)."""
    if not tape.weights.are_in_their_places(input, weight, bias):
        return NotImplemented
    statistics = (running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled)
    xhat = run_exactly(torch.instance_norm, (input, None, None, *statistics), {})
    return _scale_and_shift(tape, xhat, weight, bias, _channels(input))


def _channels(input: Tensor) -> tuple[int, ...]:
    """Return the shape to which a weight with one entry per channel is reshaped."""
    return (input.shape[1], *(1,) * (input.dim() - 2))
