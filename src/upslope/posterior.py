"""Uncertainties of a posterior p over C classes, with p_(1) >= p_(2) >= ... its values in order.

    least confidence  1 - p_(1)
    margin            p_(1) - p_(2)             (Scheffer et al. 2001)
    entropy           H = -sum_i p_i log p_i    (Shannon 1948; Lewis and Gale 1994), in nats

Pure functions on tensors, below signals and strategies, which both read posteriors.

Of a network that is sure, p_(1) rounds to 1 while the others still have all their digits. So where
p_(1) is above `SURE`, 1 - p_(1) is the sum of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

SURE = 0.99
"""Below this, 1 - p_(1) is right to 10^-5 of it, and exact ties stay exact."""

BINS = 15
"""Of a calibration error, by confidence (Guo et al., ICML 2017)."""


def in_double(p: Tensor) -> Tensor:
    """Return posteriors in double precision, where they sum to 1 as well as they did before.

    In half and single precision they miss it by more than the small differences that are made of
    them: of entropies, and of eigenvalues of diag(p) - p p^T. p: (..., C), returns (..., C).
    """
    p = p.double()
    return p / p.sum(dim=-1, keepdim=True)


def least_confidence(p: Tensor) -> Tensor:
    """Return 1 - max_i p_i. p: (n, C, ...), returns (n, ...)."""
    first = p.amax(dim=1)
    return torch.where(first > SURE, _rest(p, first, 1), 1 - first)


def margin(p: Tensor) -> Tensor:
    """Return p_(1) - p_(2), 0 at an exact tie; 1 for a single class. p: (n, C, ...) -> (n, ...)."""
    if p.shape[1] < 2:
        return torch.ones_like(p[:, 0])
    first, second = p.topk(2, dim=1).values.unbind(dim=1)
    return first - second


def closeness(p: Tensor) -> Tensor:
    """Return 1 - (p_(1) - p_(2)), 1 at an exact tie, 0 for a single class.

    p: (n, C, ...), returns (n, ...).
    """
    if p.shape[1] < 2:
        return torch.zeros_like(p[:, 0])
    first, second = p.topk(2, dim=1).values.unbind(dim=1)
    return torch.where(first > SURE, _rest(p, first, 1) + second, 1 - (first - second))


def entropy(p: Tensor, dim: int = 1) -> Tensor:
    """Return -sum_i p_i log p_i in nats, with 0 log 0 = 0.

    p: (n, C, ...), or with the classes in another `dim`, which the result lacks.
    """
    as_written = -torch.xlogy(p, p).sum(dim=dim)
    first = p.amax(dim=dim)
    rest = _rest(p, first, dim)
    # The term of p_(1) anew: (1 - rest) log(1 - rest).
    anew = torch.xlogy(first, first) - (1 - rest) * torch.log1p(-rest)
    return torch.where(first > SURE, as_written + anew, as_written)


def calibration_bins(confidence: Tensor) -> Tensor:
    """Return the bin of each confidence p_(1), 0 to 14: in bin b, b / 15 < p_(1) <= (b + 1) / 15.

    confidence: (n,).
    """
    return (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1


def _rest(p: Tensor, first: Tensor, dim: int) -> Tensor:
    """Return the sum of the classes but the first where p_(1) is above `SURE`, 0 elsewhere."""
    is_sure = first > SURE
    rows = p.movedim(dim, -1)[is_sure]
    return torch.zeros_like(first).masked_scatter(
        is_sure, rows.masked_fill(rows > SURE, 0.0).sum(dim=-1)
    )
