"""Networks with fixed weights below a head, for the tests of frozen features; no test itself."""

import os
import time

import torch
from torch import nn


class Small(nn.Module):
    """A convolution, pooling to 2x2, a head. pause: seconds per forward pass."""

    def __init__(self, channels, num_classes, pause=0.0):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 5, 3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(20, num_classes)
        self.pause = pause

    def forward(self, x):
        time.sleep(self.pause)
        x = torch.relu(self.convolution(x))
        return self.head(self.dropout(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)))


def make(num_classes, input_shape, shift=0.0):
    network = Small(input_shape[0], num_classes, float(os.environ.get("FROZEN_PAUSE", 0)))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.convolution.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3 + shift)
    return network


make.mean, make.std = [0.3], [0.2]


def untrained(num_classes, input_shape):
    return Small(input_shape[0], num_classes)


untrained.mean, untrained.std = [0.3], [0.2]


def without_form(num_classes, input_shape):
    return make(num_classes, input_shape)


def with_own_option(num_classes, input_shape, freeze=True):
    network = make(num_classes, input_shape)
    network.convolution.requires_grad_(not freeze)
    return network
