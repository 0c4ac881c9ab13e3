"""Steps that mix samples, put into a random network at a stated rate; a refusal is right then."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[Tensor, float], Tensor]


def rows(x: Tensor) -> Tensor:
    return x.flatten(1).detach().mean(1)


MIXERS: dict[str, Step] = {
    "mean": lambda x, _: x - x.mean(0),
    "detached mean": lambda x, _: x - x.detach().mean(0),
    "softmax": lambda x, _: x * x.softmax(0),
    "attention": lambda x, _: (
        (x.flatten(1) @ x.flatten(1).T).softmax(1).matmul(x.flatten(1)).view_as(x)
    ),
    "running total": lambda x, _: x.cumsum(0),
    "neighbour": lambda x, _: x + 0.5 * x.roll(1, 0),
    "weak neighbour": lambda x, _: x + 1e-3 * x.roll(1, 0),
    "last sees first": lambda x, _: torch.cat([x[:-1], x[-1:] + x[:1]]),
    "if large": lambda x, t: x - x.mean(0) if bool(rows(x).max() > t) else x,
    "large rows": lambda x, t: torch.where(
        (rows(x) > t).view(-1, *[1] * (x.dim() - 1)), x + x.mean(0), x
    ),
    "sorted": lambda x, _: x[rows(x).argsort()],
    "sorted entries": lambda x, _: x.sort(0).values,
    "largest": lambda x, _: x / (1 + x.abs().max()),
    "gradient alone": lambda x, _: x + x.mean(0) - x.mean(0).detach(),
    "count": lambda x, _: x * len(x),
}


class Mix(nn.Module):
    """One of MIXERS."""

    def __init__(self, name: str, threshold: float):
        super().__init__()
        self.name, self.threshold = name, threshold

    def forward(self, x: Tensor) -> Tensor:
        return MIXERS[self.name](x, self.threshold) if len(x) > 1 else x


def mixer(r: random.Random) -> nn.Module:
    return Mix(r.choice(list(MIXERS)), r.uniform(-0.5, 1.0))
