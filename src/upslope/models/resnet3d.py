"""Residual networks for volumes: ResNet's basic blocks with 3x3x3 convolutions.

The paper customises "ResNet-18 with 3D operations" (A.5) without saying how it begins. Here it
is its CIFAR network layer by layer: a 3x3x3 stem without pooling, 33,165,426 parameters at 50
classes and one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.models.small import Dropout


class BasicBlock3d(nn.Module):
    """Two 3x3x3 convolutions around a shortcut; (n, inputs, d, h, w) -> (n, width, d/s, ...)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, width, 1, stride, bias=False), nn.BatchNorm3d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, d/s, h/s, w/s) for (n, inputs, d, h, w)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet3d(nn.Module):
    """A 3x3x3 stem, stages of basic blocks (each but the first halves the volume), a linear head.

    blocks, widths: one number a stage. stem_stride: 2 halves the volume at once.
    """

    stages: tuple[str, ...]

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        channels: int,
        *,
        stem_stride: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(widths[0])
        self.stages = tuple(f"layer{i + 1}" for i in range(len(blocks)))
        inputs = widths[0]
        for i, (stage, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            strides = [1 if i == 0 else 2] + [1] * (count - 1)
            layers = []
            for stride in strides:
                layers.append(BasicBlock3d(inputs, width, stride))
                inputs = width
            self.add_module(stage, nn.Sequential(*layers))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, channels, d, h, w)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(self.dropout(x.mean(dim=(2, 3, 4))))
        return logits


def resnet18_3d(num_classes: int, input_shape: tuple[int, ...], dropout: Dropout = 0.0) -> ResNet3d:
    """ResNet-18 in 3D, for volumes of 32x32x32: the paper's network on subtomograms."""
    channels = _channels("resnet18-3d", input_shape)
    widths = (64, 128, 256, 512)
    return ResNet3d((2, 2, 2, 2), widths, num_classes, channels, dropout=dropout)


def resnet_small_3d(
    num_classes: int,
    input_shape: tuple[int, ...],
    blocks: Annotated[int, Field(ge=1, description="blocks a stage")] = 1,
    width: Annotated[int, Field(ge=1, description="channels of the first of 3 stages")] = 16,
    dropout: Dropout = 0.0,
) -> ResNet3d:
    """A residual network for volumes, three stages, 228 thousand parameters, on a CPU."""
    channels = _channels("resnet-small-3d", input_shape)
    widths = (width, 2 * width, 4 * width)
    return ResNet3d((blocks,) * 3, widths, num_classes, channels, stem_stride=2, dropout=dropout)


def _channels(name: str, input_shape: tuple[int, ...]) -> int:
    if len(input_shape) != 4 or min(input_shape[1:]) < 8:
        raise ModelError(
            f"Expected inputs of shape (c, d, h, w) with d, h and w at least 8 for the model "
            f"{name!r} but got {tuple(input_shape)}. Its images are volumes; for images in the "
            "plane take `resnet18-cifar` or `resnet-small`."
        )
    return input_shape[0]
