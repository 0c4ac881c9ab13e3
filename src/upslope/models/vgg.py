"""VGG-16: K. Simonyan and A. Zisserman, Very Deep Convolutional Networks, ICLR 2015.

Thirteen 3x3 convolutions in five stages and three linear layers, under torchvision's state-dict
keys, so that its weights load: 138,357,544 parameters at 1,000 classes, 138,365,992 with
BatchNorm.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from upslope.models.small import image_channels

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of each stage; a 2x2 max-pooling ends it."""

HeadDropout = Annotated[float, Field(ge=0, lt=1, description="dropout behind both hidden layers")]


class VGG(nn.Module):
    """(n, channels, h, w) from 32x32 up -> (n, num_classes)."""

    stages: tuple[str, ...]
    """The poolings that end the stages."""

    def __init__(
        self, num_classes: int, channels: int, *, batch_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        stages = []
        for widths in WIDTHS:
            for width in widths:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            stages.append(f"features.{len(layers)}")
            layers.append(nn.MaxPool2d(2))
        self.stages = tuple(stages)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, channels, h, w)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def vgg16(num_classes: int, input_shape: tuple[int, ...], dropout: HeadDropout = 0.5) -> VGG:
    """VGG-16 without BatchNorm, for images from 32x32 up; torchvision's weights load."""
    channels = image_channels("vgg16", input_shape, 32)
    return VGG(num_classes, channels, batch_norm=False, dropout=dropout)


def vgg16_bn(num_classes: int, input_shape: tuple[int, ...], dropout: HeadDropout = 0.5) -> VGG:
    """VGG-16 with BatchNorm, for images from 32x32 up; torchvision's weights load."""
    channels = image_channels("vgg16-bn", input_shape, 32)
    return VGG(num_classes, channels, batch_norm=True, dropout=dropout)
