"""Batch normalisation with fixed statistics: y = (x - mean) / sqrt(var + eps) * w + b.

    dL_n/dw = sum of g * (x - mean) / sqrt(var + eps)        dL_n/db = sum of g

over the positions of sample n, with the running statistics as constants. With the statistics of
the batch, no sample has a gradient of its own, and the layer is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.layout import Layout, Samples
from upslope.gradnorm.core.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.tape import Kernel, Tape
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

    def __init__(self, tape: Tape, norm: Normalisation):
        self.weight, self.bias, self.mean, self.var, self.eps = norm
        self.weights = tape.weights.select_weights(norm.weight, norm.bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`. x: (n, c, ...)."""
        return torch.nn.functional.batch_norm(
            inputs[0], self.mean, self.var, self.weight, self.bias, eps=self.eps
        )

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        scale = (self.var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.detach()
        # Statistics stay float32 where activations are in half precision.
        # The statistics may be float32 under a network in half precision.
        return (g * scale.to(g.dtype).view(-1, *(1,) * (g.dim() - 2)),)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        large = g[0].numel() >= _LARGE * torch.get_num_threads()
        if samples.layout == Layout() and len(g) == samples.n and large:
            scale, shift = self._one_by_one(g, inputs[0])
        else:
            scale, shift = self._at_once(g, inputs[0], samples)
        for weight in self.weights:
            yield weight, Dense(scale if weight is self.weight else shift)

    def _at_once(self, g: Tensor, x: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return the gradients of scale and shift of all samples, (n, c) each."""
        channels = (g.shape[1], *(1,) * (g.dim() - 2))
        shift = samples.sum_to_shape(g, channels).flatten(1)  # (n, c)
        product = samples.sum_to_shape(g * x, channels).flatten(1)
        return (product - self.mean * shift) * (self.var + self.eps).rsqrt(), shift

    def _one_by_one(self, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same by torch's own backward pass of each sample, which reads g and x once."""
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
    cudnn_enabled: bool,  # noqa: ARG001
) -> Any:
    """`torch.batch_norm`, which `nn.BatchNorm*d` calls."""
    norm = Normalisation(weight, bias, running_mean, running_var, eps)
    fused_output = None if tape.fusion is None else tape.fusion.on_normalisation(input, norm)
    return tape.use(BatchNormEval(tape, norm), input) if fused_output is None else fused_output
