"""Whether some numbers of one sample depend on another: by scales of their own.

If the loss L_i of each sample is multiplied by a power of two of its own, u_i, then the gradient at
whatever belongs to sample j alone is multiplied by u_j: exactly, since powers of two do not round.
Where another sample's loss reaches it, the gradient is another number, but for coincidences of
probability zero. One backward pass with all u_i = 1 and one with the u_i tell all pairs apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

_POWERS = {torch.float16: range(-4, 5)}
"""The powers of two. Half precision would leave its range with more."""
_POWERS_ELSE = range(41)
"""None below zero: a gradient that float32 can just hold would be zero for some samples, and seem
to reach a weight in the pass without powers alone."""
_ROUNDINGS = 64
"""Roundings in the type of a gradient that its two values may differ by; they differ by none where
nothing overflows and a library sums in one order."""
_PART = 1 << 16
"""Random numbers that are drawn at once, from a seed of their own."""
_mixes: dict[tuple[torch.dtype, torch.device], Tensor] = {}
"""The random numbers drawn so far."""


def scales(n: int, like: Tensor, seed: int = 0, precision: torch.dtype | None = None) -> Tensor:
    """Return a power of two for each sample, (n,), of the type of `like`.

    precision: the type that gradients are formed in, where it is not that of `like`.
    Up to 41 samples (9 in half precision) have distinct ones.
    Of more samples, two share a power with a probability of about 1/41.
    """
    powers_to_take = _POWERS.get(precision or like.dtype, _POWERS_ELSE)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    powers = order % len(powers_to_take) + powers_to_take.start
    return torch.ldexp(torch.ones(n), powers).to(like.real if like.is_complex() else like)


def checksum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return one random combination of the entries of each sample, (n,), and its size, (n,).

    rows: (n, ...). Scaling a sample by a power of two scales its checksum exactly.
    """
    flat = torch.view_as_real(rows) if rows.is_complex() else rows
    flat = flat.reshape(len(rows), -1)
    mix = _mix(flat.shape[1], flat.dtype, flat.device)
    return flat @ mix, torch.linalg.vector_norm(flat, dim=1) * torch.linalg.vector_norm(mix)


def _mix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the first random numbers of a sequence, (size,): always the same ones.

    All sizes share one tensor, as long as the longest that was asked for.
    """
    mix = _mixes.get((dtype, device))
    if mix is None or len(mix) < size:
        parts = [] if mix is None else [mix]
        for k in range(sum(map(len, parts)) // _PART, -(-size // _PART)):
            generator = torch.Generator().manual_seed(k)
            parts.append(torch.randn(_PART, generator=generator).to(device, dtype))
        mix = _mixes[dtype, device] = torch.cat(parts)
    return mix[:size]


def differ(
    scaled_sums: Tensor,
    once: Tensor,
    u: Tensor,
    size: Tensor | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """(n,) bool: samples whose entries in `scaled_sums` are not u times those in `once`.

    once, scaled_sums: (n, ...) each.
    size: what rounding errors are proportional to; by default |once|. precision: the type that both
    were formed in, where it is not theirs.
    """
    u = u.to(once.real.dtype if once.is_complex() else once.dtype)
    u = u.view(-1, *(1,) * (once.dim() - 1))
    wanted_sums = once * u
    info = torch.finfo(precision or once.dtype)
    # A power of two rounds nothing, but a library may sum the scaled numbers in another order.
    largest_difference = (once.abs() if size is None else size) * u * (_ROUNDINGS * info.eps)
    # Below the normal numbers a power of two does round.
    largest_difference = largest_difference + info.tiny * u.clamp(min=1) * _ROUNDINGS
    wrong = ~((scaled_sums - wanted_sums).abs() <= largest_difference)
    wrong &= torch.isfinite(scaled_sums) & torch.isfinite(wanted_sums)
    return wrong.flatten(1).any(dim=1) if wrong.dim() > 1 else wrong
