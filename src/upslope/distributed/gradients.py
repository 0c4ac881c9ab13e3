"""Sums of gradients over ranks, and batches put together from the parts of all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from upslope.distributed.ranks import Ranks


def add_gradients(ranks: Ranks, parameters: Sequence[nn.Parameter], total: Tensor) -> Tensor:
    """Add the gradients of all ranks, in place and in one collective; returns the sum of `total`.

    A parameter that no rank has used keeps no gradient, as on one process, so that no optimiser
    decays it.

    total: one number of this rank, such as the sum of its losses.
    """
    is_used = torch.tensor([p.grad is not None for p in parameters])
    kind = total.dtype
    for parameter in parameters:
        kind = torch.promote_types(kind, parameter.dtype)
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad).to(kind).reshape(-1) for p in parameters
    ]
    flat = torch.cat([*parts, total.reshape(1).to(kind), is_used.to(total.device, kind)])
    ranks.add(flat)
    if not bool(is_used.all()):  # reading numbers waits for the device: only where there is need
        is_used = flat[len(flat) - len(parameters) :].cpu() > 0
    start = 0
    for parameter, has_gradient in zip(parameters, is_used.tolist(), strict=True):
        if has_gradient:
            gradient = flat[start : start + parameter.numel()].view_as(parameter)
            if parameter.grad is None:
                parameter.grad = gradient.to(parameter.dtype).clone()
            else:
                parameter.grad.copy_(gradient)
        start += parameter.numel()
    return flat[start].to(total.dtype)


def exchange_parts(ranks: Ranks, part: Tensor, n: int) -> Tensor:
    """Return a whole batch, (n, ...), of which each rank has read its part, in order.

    part: this rank's rows, n / size of them, rounded by place as `PartialTraining` divides them.
    """
    whole = part.new_zeros(n, *part.shape[1:])
    begin = ranks.rank * n // ranks.size
    whole[begin : begin + len(part)] = part
    # Rows of the other ranks are zero here: a sum puts them together, and is exact.
    if whole.dtype == torch.bool:
        return ranks.add(whole.to(torch.uint8)).to(torch.bool)
    return ranks.add(whole)
