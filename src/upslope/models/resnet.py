"""Residual networks: K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016.

One network with two stems. The CIFAR form (3x3 stem, no max-pooling) is that of the paper's
experiments, 11,173,962 parameters at 10 classes. The ImageNet form carries torchvision's
state-dict keys, with the stride on the 3x3 convolution of a bottleneck, so its weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.models.memory_order import WIDE, in_order_of
from upslope.models.small import Dropout, image_channels


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; (n, inputs, h, w) -> (n, width, h/s, w/s)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, h/s, w/s) for (n, inputs, h, w)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the last is four times as wide."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, 4 * width, h/s, w/s) for (n, inputs, h, w)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A stem, stages of residual blocks (each but the first halves the image), a linear head.

    blocks, widths: one number a stage. imagenet: 7x7 stem of stride 2 and max-pooling, weights
    drawn as torchvision draws them; otherwise a 3x3 stem and PyTorch's default weights, as in
    the code behind the paper's CIFAR experiments.
    """

    stages: tuple[str, ...]

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        channels: int,
        *,
        imagenet: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if imagenet:
            self.conv1 = nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else None
        self.stages = tuple(f"layer{i + 1}" for i in range(len(blocks)))
        inputs = widths[0]
        for i, (stage, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            strides = [1 if i == 0 else 2] + [1] * (count - 1)
            layers: list[nn.Module] = []
            for stride in strides:
                layers.append(block(inputs, width, stride))
                inputs = block.expansion * width
            self.add_module(stage, nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, num_classes)
        if imagenet:
            _draw_weights(self)

    def arrange_memory(self) -> None:
        """Bring the weights into the order of memory that is fastest on a CPU, in place.

        Channels last, but for wide stages; `forward` brings the images along.
        """
        for module in self.children():
            is_wide = any(
                isinstance(m, nn.Conv2d) and len(m.weight) >= WIDE for m in module.modules()
            )
            order = torch.contiguous_format if is_wide else torch.channels_last
            module.to(memory_format=order)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, channels, h, w)."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in self.stages:
            blocks: Any = self.get_submodule(stage)
            x = blocks(in_order_of(x, blocks[-1].conv2.weight))
        logits: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return logits


def _draw_weights(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18_cifar(
    num_classes: int, input_shape: tuple[int, ...], dropout: Dropout = 0.0
) -> ResNet:
    """ResNet-18 with a 3x3 stem, for 32x32 images: the network of the paper's experiments."""
    channels = image_channels("resnet18-cifar", input_shape, 8)
    return ResNet(
        BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), num_classes, channels, dropout=dropout
    )


def resnet_small(
    num_classes: int,
    input_shape: tuple[int, ...],
    blocks: Annotated[int, Field(ge=1, description="blocks a stage; 1 is ResNet-8, 2 is 14")] = 1,
    width: Annotated[int, Field(ge=1, description="channels of the first of 3 stages")] = 16,
    dropout: Dropout = 0.0,
) -> ResNet:
    """A residual network of three stages, 78 thousand parameters, for 8x8 to 64x64 on a CPU."""
    channels = image_channels("resnet-small", input_shape, 8)
    widths = (width, 2 * width, 4 * width)
    return ResNet(BasicBlock, (blocks,) * 3, widths, num_classes, channels, dropout=dropout)


def resnet50_cifar(
    num_classes: int, input_shape: tuple[int, ...], dropout: Dropout = 0.0
) -> ResNet:
    """ResNet-50 with a 3x3 stem, for 32x32 images: the paper's larger network on CIFAR."""
    channels = image_channels("resnet50-cifar", input_shape, 8)
    return ResNet(
        Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), num_classes, channels, dropout=dropout
    )


def resnet18(num_classes: int, input_shape: tuple[int, ...], dropout: Dropout = 0.0) -> ResNet:
    """ResNet-18 in its ImageNet form, for images from 32x32 up; torchvision's weights load."""
    channels = image_channels("resnet18", input_shape, 32)
    widths = (64, 128, 256, 512)
    return ResNet(
        BasicBlock, (2, 2, 2, 2), widths, num_classes, channels, imagenet=True, dropout=dropout
    )


def resnet50(num_classes: int, input_shape: tuple[int, ...], dropout: Dropout = 0.0) -> ResNet:
    """ResNet-50 in its ImageNet form, for images from 32x32 up; torchvision's weights load."""
    channels = image_channels("resnet50", input_shape, 32)
    widths = (64, 128, 256, 512)
    return ResNet(
        Bottleneck, (3, 4, 6, 3), widths, num_classes, channels, imagenet=True, dropout=dropout
    )
