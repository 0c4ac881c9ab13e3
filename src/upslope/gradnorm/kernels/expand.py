"""A weight expanded to the shape of the samples: y = w, broadcast.

    dL_n/dw = sum of dL_n/dy over the entries of sample n that one entry of w was broadcast to

Called for every operator that works entry by entry (a scale, a shift, a gate, a position
embedding), and for attention whose queries, keys, values or bias are weights. Such an operator
needs no kernel of its own: autograd differentiates it, and the kernel here sums the gradient of the
expanded weight by sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _infer_size
from torch.nn import functional as F

from upslope.gradnorm.core.gradients.per_sample_gradients import (
    Dense,
    OfOneSample,
    PerSampleGradient,
)
from upslope.gradnorm.core.layouts.layout import LayoutOfOne, Samples
from upslope.gradnorm.core.uses.tape import Kernel, Tape


def expand_to_samples(
    tape: Tape, weight: Tensor, shape: Sequence[int], sample: int | None = None
) -> Tensor:
    """Return `weight` broadcast to `shape`, as a tensor of the samples.

    sample: the one to which all of it belongs, where that is known.
    """
    # A parameter whose memory is expanded has as many gradients as entries all the same.
    source = weight if weight._base is None else weight._base
    if 0 in weight.stride() and 0 not in source.stride():
        for dim, (size, stride) in enumerate(zip(weight.shape, weight.stride(), strict=True)):
            if stride == 0 and size > 1:  # expanded before: all entries are one of the weight's
                weight = weight.narrow(dim, 0, 1)
    return tape.use(Expansion(weight, shape, sample))


def expand_operand(tape: Tape, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `weight` broadcast to `shape`, for an operator that does not write to it.

    A recurrence that is written out takes the same weights in each of its steps. Expanded once,
    they are one use, and autograd adds up what reaches it from all steps.
    """
    expansions = tape.expansions
    # A tensor inside `vmap` belongs to one level of it, and cannot be kept for another.
    if expansions is None or torch._C._are_functorch_transforms_active():
        return expand_to_samples(tape, weight, shape)
    _, expansion, version = expansions.get((id(weight), shape), (None, None, 0))
    # The expansion shares the weight's memory and its count of writes: after one it is made anew.
    if expansion is None or expansion._version != version or weight._version != version:
        expansion = expand_to_samples(tape, weight, shape)
        if expansion.requires_grad:  # not where the model has switched gradients off
            # The weight is held: its id stays its own.
            expansions[id(weight), shape] = weight, expansion, expansion._version
    else:
        tape.has_shared_expansion = True
    return expansion


class Expansion(Kernel):
    """y = w, broadcast to `shape`. Takes no inputs."""

    name = "broadcast"

    def __init__(self, weight: Tensor, shape: Sequence[int], sample: int | None = None):
        self.weights = (weight,)
        self.shape = tuple(shape)
        self.layout = None if sample is None else LayoutOfOne(sample=sample)

    def forward(self, *_: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        return self.weights[0].detach().expand(self.shape)

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG002
        """Return the gradients of the inputs; see `Kernel`."""
        return ()

    def weight_gradients(
        self, g: Tensor, *_: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        (weight,) = self.weights
        if isinstance(self.layout, LayoutOfOne):
            yield weight, OfOneSample(samples.n, self.layout.sample, g.sum_to_size(weight.shape))
        else:
            yield weight, Dense(samples.sum_to_shape(g, weight.shape))


def scaled_dot_product_attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **options: Any,
) -> Any:
    """`F.scaled_dot_product_attention`. query: (..., l, e), key: (..., s, e), bias: (..., l, s)."""
    batch = torch.Size()
    if not options.get("enable_gqa"):  # with unequal numbers of heads there is no common shape
        batch = _infer_size(_infer_size(query.shape[:-2], key.shape[:-2]), value.shape[:-2])

    def expand(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        return expand_to_samples(tape, tensor, shape) if tape.weights.is_weight(tensor) else tensor

    bias_shape = (*(batch or query.shape[:-2]), query.shape[-2], key.shape[-2])
    query, key, value = (
        expand(t, (*(batch or t.shape[:-2]), *t.shape[-2:])) for t in (query, key, value)
    )
    if attn_mask is not None:
        attn_mask = expand(attn_mask, bias_shape)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **options)
