"""Dilated networks for segmentation: logits at the size of the image.

DRN-D-22 is that of F. Yu, V. Koltun and T. Funkhouser, Dilated Residual Networks, CVPR 2017: it
halves the image three times, widens its view by dilation from there on, and returns to full size
by a fixed bilinear upsampling. Its state-dict keys are those of the authors' segmentation
network, so their published weights load: `base.<level>...`, `seg`, `up`.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.models.small import image_channels

Dropout = Annotated[float, Field(ge=0, lt=1, description="dropout in front of the last layer")]


class DilatedBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; (n, inputs, h, w) -> (n, width, h/s, w/s)."""

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 1, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, h/s, w/s) for (n, inputs, h, w)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


class BilinearUpsample(nn.Module):
    """Each plane `factor` times as large, by a fixed transposed convolution.

    The weights are a buffer: never trained, no part of a gradient norm, but of the state dict.
    Beyond the border lie zeros, as in the authors' network.
    """

    weight: Tensor

    def __init__(self, planes: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        distance = (torch.arange(2 * factor) - (factor - 0.5)).abs()
        line = 1 - distance / factor
        kernel = line[:, None] * line[None, :]
        self.register_buffer("weight", kernel.expand(planes, 1, -1, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, planes, factor * h, factor * w) for (n, planes, h, w)."""
        return F.conv_transpose2d(
            x, self.weight, stride=self.factor, padding=self.factor // 2, groups=len(self.weight)
        )


class DilatedNetwork(nn.Module):
    """`base`, a 1x1 convolution to classes, and the way back to full size; (n, classes, h, w).

    Images of any size: one that is no multiple of the stride is answered on the next multiple,
    and cut back.
    """

    def __init__(
        self,
        base: nn.Sequential,
        width: int,
        num_classes: int,
        stride: int,
        stages: tuple[str, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(dropout)
        self.seg = nn.Conv2d(width, num_classes, 1)
        self.up = BilinearUpsample(num_classes, stride)
        self.stages = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if self.seg.bias is not None:
            nn.init.zeros_(self.seg.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes, h, w) for (n, channels, h, w)."""
        logits: Tensor = self.up(self.seg(self.dropout(self.base(x))))
        return logits[:, :, : x.shape[2], : x.shape[3]]


def _conv(inputs: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, width, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _conv_level(inputs: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _conv(inputs, width, stride, dilation), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def _block_level(inputs: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        DilatedBlock(inputs, width, stride, dilation), DilatedBlock(width, width, 1, dilation)
    )


def drn_d_22(
    num_classes: int, input_shape: tuple[int, ...], dropout: Dropout = 0.0
) -> DilatedNetwork:
    """DRN-D-22 for segmentation, output stride 8: the paper's network on Cityscapes."""
    channels = image_channels("drn-d-22", input_shape, 8)
    base = nn.Sequential(
        nn.Sequential(
            nn.Conv2d(channels, 16, 7, padding=3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        ),
        _conv_level(16, 16),
        _conv_level(16, 32, stride=2),
        _block_level(32, 64, stride=2),
        _block_level(64, 128, stride=2),
        _block_level(128, 256, dilation=2),
        _block_level(256, 512, dilation=4),
        _conv_level(512, 512, dilation=2),
        _conv_level(512, 512),
    )
    stages = ("base.3", "base.4", "base.5", "base.6")
    return DilatedNetwork(base, 512, num_classes, 8, stages, dropout)


def dilated_small(
    num_classes: int,
    input_shape: tuple[int, ...],
    width: Annotated[int, Field(ge=1, description="channels of the first of 2 levels")] = 24,
    dropout: Dropout = 0.0,
) -> DilatedNetwork:
    """A dilated network of 178 thousand parameters, output stride 4, for 240x180 on a CPU."""
    channels = image_channels("dilated-small", input_shape, 4)
    base = nn.Sequential(
        _conv_level(channels, width, stride=2),
        _conv_level(width, 2 * width, stride=2),
        DilatedBlock(2 * width, 2 * width, dilation=2),
        DilatedBlock(2 * width, 2 * width, dilation=4),
        DilatedBlock(2 * width, 2 * width, dilation=8),
        _conv_level(2 * width, 2 * width, dilation=2),
        _conv_level(2 * width, 2 * width),
    )
    stages = ("base.1", "base.2", "base.3", "base.4")
    return DilatedNetwork(base, 2 * width, num_classes, 4, stages, dropout)
