"""Uncertainties of a posterior p over C classes, with p_(1) >= p_(2) >= ... its values in order.

    least confidence  1 - p_(1)
    margin            p_(1) - p_(2)             (Scheffer et al. 2001)
    entropy           H = -sum_i p_i log p_i    (Shannon 1948; Lewis and Gale 1994), in nats

Pure functions on tensors, below signals and strategies, which both read posteriors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def least_confidence(p: Tensor) -> Tensor:
    """Return 1 - max_i p_i. p: (n, C, ...), returns (n, ...)."""
    return 1 - p.amax(dim=1)


def margin(p: Tensor) -> Tensor:
    """Return p_(1) - p_(2), 0 at an exact tie; 1 for a single class. p: (n, C, ...) -> (n, ...)."""
    if p.shape[1] < 2:
        return torch.ones_like(p[:, 0])
    first, second = p.topk(2, dim=1).values.unbind(dim=1)
    return first - second


def entropy(p: Tensor, dim: int = 1) -> Tensor:
    """Return -sum_i p_i log p_i in nats, with 0 log 0 = 0.

    p: (n, C, ...), or with the classes in another `dim`, which the result lacks.
    """
    return -torch.xlogy(p, p).sum(dim=dim)
