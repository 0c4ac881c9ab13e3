"""A network with fixed weights below its head, whose features faults are made in; no test."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A convolution, pooling to 2x2, and a linear head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 5, 3)
        self.head = nn.Linear(20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.convolution(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def make(num_classes: int, input_shape: tuple[int, ...]) -> Network:
    """Return the network, the same at every call but for its head."""
    del input_shape
    network, rng = Network(num_classes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.convolution.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return network


make.mean, make.std = [0.3], [0.2]  # type: ignore[attr-defined]
