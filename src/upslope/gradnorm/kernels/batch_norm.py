"""Batch normalisation with fixed statistics: y = (x - mean) / sqrt(var + eps) * w + b.

    dL_n/dw = sum of g * (x - mean) / sqrt(var + eps)        dL_n/db = sum of g

over the positions of sample n, with the running statistics as constants. With the statistics of
the batch, no sample has a gradient of its own, and the layer is refused by name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.layouts.layout import Samples
from upslope.gradnorm.core.uses.tape import Kernel, Tape
from upslope.gradnorm.torch_faults import in_order

_LARGE = 1 << 16
"""Entries per sample and thread from which it pays to compute samples one at a time, in the cache.
Set by hand."""


class Normalisation(NamedTuple):
    """The arguments of a batch normalisation."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float

    def same(self, other: Normalisation) -> bool:
        """Return whether another normalisation has the very same tensors."""
        pairs = zip(self[:4], other[:4], strict=True)
        return self.eps == other.eps and all(a is b for a, b in pairs)


class BatchNormEval(Kernel):
    """y = (x - mean) / sqrt(var + eps) * w + b, with the running statistics as constants."""

    name = "batch_norm (eval)"

    def __init__(self, tape: Tape, norm: Normalisation, allows_cudnn: bool = False):
        self.weight, bias, self.mean, self.var, self.eps = norm
        self.bias = tape.weights.apart(bias, self.weight)
        self.weights = tape.weights.select_weights(self.weight, self.bias)
        self._allows_cudnn = allows_cudnn

    @functools.cached_property
    def _rate(self) -> Tensor:
        return (self.var + self.eps).rsqrt_()

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`. x: (n, c, ...)."""
        return torch.batch_norm(
            inputs[0], self.weight, self.bias, self.mean, self.var,
            False, 0.0, self.eps, self._allows_cudnn,
        )  # fmt: skip

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        scale = self._rate if self.weight is None else self._rate * self.weight.detach()
        if scale.dtype != g.dtype:  # statistics may be float32 under a network in half precision
            scale = scale.to(g.dtype)
        return (g * (scale if g.dim() == 2 else scale.view(-1, *(1,) * (g.dim() - 2))),)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        x, n = inputs[0], samples.n
        if not samples.layout.is_usual or g.shape[0] != n:
            scale, shift = self._of_any_layout(g, x, samples)
        elif g.numel() >= n * _LARGE * torch.get_num_threads():
            scale, shift = self._one_by_one(g, x)
        else:
            scale, shift = self._at_once(g, x)
        for weight in self.weights:
            yield weight, Dense(scale if weight is self.weight else shift)

    def _of_any_layout(self, g: Tensor, x: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return the gradients of scale and shift of all samples, (n, c) each."""
        channels = (g.shape[1], *(1,) * (g.dim() - 2))
        shift = samples.sum_to_shape(g, channels).flatten(1)  # (n, c)
        product = samples.sum_to_shape(g * x, channels).flatten(1)
        return (product - self.mean * shift) * self._rate, shift

    def _at_once(self, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `_of_any_layout` does, in a third of the calls.

        Dimension 0 must have one row per sample.
        """
        if g.dim() == 2:
            scale = x - self.mean
            if scale.dtype == g.dtype == self._rate.dtype:  # in place, in the cache
                return scale.mul_(g).mul_(self._rate), g
            return scale * g * self._rate, g
        space = list(range(2, g.dim()))
        shift = g.sum(dim=space)
        product = (g * x).sum(dim=space)
        return product.addcmul_(self.mean, shift, value=-1).mul_(self._rate), shift

    def _one_by_one(self, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `_of_any_layout` does, by torch's own backward pass of each sample.

        It reads g and x once. Dimension 0 must have one row per sample.
        """
        sums = [
            torch.ops.aten.native_batch_norm_backward(
                in_order(g[i : i + 1]), in_order(x[i : i + 1]), self.var, self.mean, self.var,
                None, None, False, self.eps, (False, True, True),
            )[1:]
            for i in range(len(g))
        ]  # fmt: skip
        return torch.stack([scale for scale, _ in sums]), torch.stack([shift for _, shift in sums])


def batch_norm(
    tape: Tape,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,  # noqa: ARG001
    momentum: float,  # noqa: ARG001
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """`torch.batch_norm`, which `nn.BatchNorm*d` calls."""
    if not tape.weights.are_in_their_places(input, weight, bias):
        return NotImplemented
    norm = Normalisation(weight, bias, running_mean, running_var, eps)
    fused_output = None if tape.fusion is None else tape.fusion.on_normalisation(input, norm)
    if fused_output is not None:
        return fused_output
    return tape.use(BatchNormEval(tape, norm, cudnn_enabled), input)
