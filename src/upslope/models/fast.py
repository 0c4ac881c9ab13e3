"""A network for small images that trains in a minute: whitening, three groups of convolutions.

After the network of airbench (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024): a
frozen 2x2 convolution that makes patches of pixels uncorrelated; three groups of convolution, 2x2
pooling, BatchNorm, activation, convolution, BatchNorm, activation; the maximum over what is left of
the image; a linear head without bias, whose logits are made small. BatchNorm has biases but no
scales, and a convolution starts as the identity on its first channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.models.small import image_channels

_PATCH = 2  # pixels along an edge of a whitened patch
_SMOOTH = 5e-4  # added to the variances of patches, so that those of noise are not blown up
_MOMENTUM = 0.4  # of running statistics: trainings of some hundred steps have no time for 0.1
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class FastCNN(nn.Module):
    """Input (n, c, h, w) from 17x17 up; output (n, num_classes). `whiten` sets the first layer."""

    stages = ("group1", "group2", "group3")

    def __init__(
        self,
        num_classes: int,
        channels: int,
        widths: tuple[int, int, int],
        activation: str,
        logit_scale: float,
    ) -> None:
        super().__init__()
        first = 2 * channels * _PATCH**2
        act = _ACTIVATIONS[activation]
        self.whitening = nn.Conv2d(channels, first, _PATCH)
        self.whitening.weight.requires_grad_(False)
        self.activation = act()
        self.group1 = _group(first, widths[0], act)
        self.group2 = _group(widths[0], widths[1], act)
        self.group3 = _group(widths[1], widths[2], act)
        self.head = nn.Linear(widths[2], num_classes, bias=False)
        self.logit_scale = logit_scale

    def arrange_memory(self) -> None:
        """Bring the weights into the order of memory that is fastest on a CPU: channels last."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, c, h, w)."""
        x = self.activation(self.whitening(x))
        x = self.group3(self.group2(self.group1(x)))
        features = F.max_pool2d(x, x.shape[2:]).flatten(1) * self.logit_scale
        logits: Tensor = self.head(features)  # last, as strategies that read features want it
        return logits

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer from prepared images (n, c, h, w): no label is needed.

        Its filters are the eigenvectors of the second moments of all 2x2 patches, each divided by
        the root of its eigenvalue, and their negatives, as an activation keeps one sign alone. The
        biases, which are trained, become 0.
        """
        channels = self.whitening.in_channels
        size = channels * _PATCH**2  # numbers in a patch
        moments = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        count = 0
        for chunk in torch.split(images, 500):
            patches = F.unfold(chunk, _PATCH).transpose(1, 2).reshape(-1, size).double()
            moments += patches.T @ patches
            count += len(patches)
        # On the CPU, whose eigenvectors are the same on every run.
        values, vectors = torch.linalg.eigh((moments / count).cpu())
        vectors = vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)  # either is one
        filters = (vectors / (values.clamp(min=0) + _SMOOTH).sqrt()).T
        filters = filters.reshape(size, channels, _PATCH, _PATCH)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        assert self.whitening.bias is not None
        self.whitening.bias.zero_()


def _group(channels: int, width: int, act: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        _convolution(channels, width),
        nn.MaxPool2d(2),
        _normalisation(width),
        act(),
        _convolution(width, width),
        _normalisation(width),
        act(),
    )


def _convolution(channels: int, width: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight[: min(channels, width)])
    return convolution


def _normalisation(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, momentum=_MOMENTUM)
    norm.weight.requires_grad_(False)  # the next filters scale as well
    return norm


Width = Annotated[int, Field(ge=1)]


def cnn_fast(
    num_classes: int,
    input_shape: tuple[int, ...],
    channels: Annotated[
        tuple[Width, Width, Width],
        Field(description="channels of the three groups; a GPU has room for 64, 256, 256"),
    ] = (32, 128, 128),
    activation: Annotated[
        Literal["relu", "gelu"], Field(description="relu is the cheaper on a CPU")
    ] = "relu",
    logit_scale: Annotated[
        float,
        Field(gt=0, description="factor of features, hence of logits: small, as rates are high"),
    ] = 1 / 9,
) -> FastCNN:
    """A whitening layer and six convolutions, for images from 17x17 up; see `training.recipe`."""
    colours = image_channels("cnn-fast", input_shape, 17)
    return FastCNN(num_classes, colours, channels, activation, logit_scale)
