"""The rule of attention whose queries, keys, values or bias are weights (learned queries, biases).

These are expanded to the batch's shape first (`expand`); what remains is attention among samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.tape import Tape
from upslope.gradnorm.kernels.expand import expand_to_samples


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
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (query, key, value)))  # type: ignore[no-untyped-call]
    if options.get("enable_gqa"):
        batch = batch[:0]  # queries and keys have unequal numbers of heads: no common shape

    def expanded(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        return expand_to_samples(tape, tensor, shape) if tape.weights.is_weight(tensor) else tensor

    bias_shape = (*query.shape[:-2], query.shape[-2], key.shape[-2])
    query, key, value = (
        expanded(t, (*(batch or t.shape[:-2]), *t.shape[-2:])) for t in (query, key, value)
    )
    if attn_mask is not None:
        attn_mask = expanded(attn_mask, bias_shape)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **options)
