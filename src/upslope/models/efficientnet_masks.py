"""EfficientNet-Lite0 with a feature pyramid, for the masks of photographs and few labels.

What the encoder makes at strides 32, 16, 8 and 4 is brought to one width by 1x1 convolutions and
added from the coarsest on (Lin et al., Feature Pyramid Networks, CVPR 2017); a 3x3 convolution and
a 1x1 convolution to classes follow, at stride 4, and bilinear interpolation to the image's size.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.models.efficientnet import (
    BlocksOption,
    LiteEncoder,
    WeightsOption,
    load_imagenet_weights,
)
from upslope.models.small import Dropout, image_channels

_LEVELS = {2: 24, 4: 40, 10: 112, 15: 320}
"""Block -> channels of its output: the last of strides 4, 8, 16 and 32."""


class EfficientNetMasks(nn.Module):
    """Input (n, 3, h, w) or (n, 1, h, w); output (n, num_classes, h, w).

    width: channels of the pyramid. blocks: how many of the encoder's last blocks are trained, with
    the pyramid; None trains everything.
    """

    stages = tuple(f"encoder._blocks.{block}" for block in _LEVELS)
    backbone = ("encoder",)

    def __init__(
        self, num_classes: int, width: int = 96, dropout: float = 0.1, blocks: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = LiteEncoder(blocks)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in _LEVELS.values())
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)
        self.seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes, h, w) for (n, c, h, w)."""
        levels = self.encoder.encode(x)
        y: Tensor | None = None
        for block, lateral in reversed(list(zip(_LEVELS, self.laterals, strict=True))):
            part = lateral(levels[block])
            y = part if y is None else part + _resize(y, part)
        logits: Tensor = self.seg(self.dropout(self.smooth(y)))
        return _resize(logits, x)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear")


def pretrained_masks(
    num_classes: int,
    input_shape: tuple[int, ...],
    weights: WeightsOption = True,
    blocks: BlocksOption = None,
    width: Annotated[int, Field(ge=1, description="channels of the feature pyramid")] = 96,
    dropout: Dropout = 0.1,
) -> EfficientNetMasks:
    """EfficientNet-Lite0 of ImageNet under a feature pyramid, for masks; needs [vision]."""
    if image_channels("pretrained-masks", input_shape, 32) not in (1, 3):
        raise ModelError(
            "Expected images of 1 or 3 channels for the model 'pretrained-masks', whose weights "
            f"are of colour images, but got {input_shape[0]}. Choose three of them."
        )
    network = EfficientNetMasks(num_classes, width, dropout, blocks)
    if weights:
        load_imagenet_weights(network.encoder)
    return network
