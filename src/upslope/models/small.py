"""Small networks for two CPU cores: a convolutional one and a perceptron."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError

Dropout = Annotated[float, Field(ge=0, lt=1, description="dropout in front of the head")]


class SmallCNN(nn.Module):
    """Two stages of 3x3 convolution, BatchNorm, ReLU, 2x2 pooling; a hidden layer; a head.

    Input (n, c, h, w) from 8x8 up; output (n, num_classes).
    """

    stages = ("stage1", "stage2")

    def __init__(self, num_classes: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.stage1 = _stage(channels, width)
        self.stage2 = _stage(width, 2 * width)
        self.hidden = nn.Linear(8 * width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, num_classes)

    def arrange_memory(self) -> None:
        """Bring the weights into the order of memory that is fastest on a CPU: channels last."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, c, h, w)."""
        x = quarters(self.stage2(self.stage1(x))).flatten(1)
        logits: Tensor = self.head(self.dropout(torch.relu(self.hidden(x))))
        return logits


def quarters(x: Tensor) -> Tensor:
    """Return the mean of each quarter of images, (n, c, 2, 2) for (n, c, h, w), h and w from 2 up.

    What adaptive pooling gives; that has no deterministic gradient on CUDA, and no odd sizes on
    MPS.
    """
    h, w = x.shape[2:]
    return F.avg_pool2d(x, ((h + 1) // 2, (w + 1) // 2), stride=(h // 2, w // 2))


def _stage(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


class MLP(nn.Module):
    """`layers` hidden layers of `hidden` units with ReLU on the flattened input; a head."""

    stages: tuple[str, ...]

    def __init__(
        self, num_classes: int, inputs: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.stages = tuple(f"hidden.{i}" for i in range(layers))
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs if i == 0 else hidden, hidden), nn.ReLU())
            for i in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, ...)."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x)
        logits: Tensor = self.head(self.dropout(x))
        return logits


def cnn_small(
    num_classes: int,
    input_shape: tuple[int, ...],
    width: Annotated[int, Field(ge=1, description="channels of the first stage")] = 32,
    dropout: Dropout = 0.0,
) -> SmallCNN:
    """Two convolutions and two linear layers, for images from 8x8 up, on a CPU."""
    return SmallCNN(num_classes, image_channels("cnn-small", input_shape, 8), width, dropout)


def mlp(
    num_classes: int,
    input_shape: tuple[int, ...],
    hidden: Annotated[int, Field(ge=1, description="units a hidden layer")] = 128,
    layers: Annotated[int, Field(ge=1, description="hidden layers")] = 2,
    dropout: Dropout = 0.0,
) -> MLP:
    """A multi-layer perceptron on the flattened input, of any shape."""
    return MLP(num_classes, int(torch.Size(input_shape).numel()), hidden, layers, dropout)


def image_channels(name: str, input_shape: tuple[int, ...], smallest: int) -> int:
    """Return the channels of a (c, h, w) shape; ModelError unless it is one with h, w >=
    smallest.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ModelError(
            f"Expected inputs of shape (c, h, w) with h and w at least {smallest} for the model "
            f"{name!r} but got {tuple(input_shape)}. Use `mlp`, which takes numbers of any "
            "shape, `bag-of-words` for texts, or a model of your own."
        )
    return input_shape[0]
