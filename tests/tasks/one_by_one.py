"""Gradient norms by ordinary autograd, one sample at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Any, int], Tensor]
"""From the output for sample i alone, (1, ...), and i, to a number."""


def norms(model: nn.Module, inputs: Tensor, loss: Loss) -> Tensor:
    """(n,)."""
    rows = []
    for i in range(len(inputs)):
        gradients = torch.autograd.grad(
            loss(model(inputs[i : i + 1]), i), list(model.parameters()), allow_unused=True
        )
        rows.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm())
    return torch.stack(rows).detach()
