"""The operands of a convolution's weight gradient, and the sizes of calls that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.per_sample_gradients import OuterProducts

_CACHE_BYTES = 3 << 20
"""Bytes of operands and results of one grouped convolution: with more, they leave the cache."""
_MAX_SAMPLES = 64
"""Samples per grouped convolution at most: its fixed cost is well shared then."""
_MAX_GROUPS = 256
"""Groups per call that a layer with groups of its own may have: each group has a cost."""
FEW_CHANNELS = 4
"""Input channels up to which images are unfolded channel by channel: rows of so few channels are
too short to be copied as a whole."""


class Geometry(NamedTuple):
    """Stride, zero padding and dilation in each dimension; groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class ConvOperands:
    """What the weight gradients of n samples are computed from.

    x: (n, k, c, *space), k images per sample. A layer that is used k times has k.
    g: (n, k, o, *positions), the gradients of the outputs.
    shape: the weight's, (o, c / groups, *kernel).
    """

    x: Tensor
    g: Tensor
    geometry: Geometry
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Return n, the number of samples."""
        return len(self.g)

    @property
    def is_pointwise(self) -> bool:
        """Whether the convolution is a product with a matrix, so that `pointwise` applies."""
        return math.prod(self.shape[2:]) == 1 and self.g.shape[1] == 1 and self.geometry.groups == 1

    def pointwise(self) -> OuterProducts:
        """Return the weight gradient as a sum of outer products; needs `is_pointwise`."""
        x = self.padded(self.x[:, 0])
        strided = (slice(None), *(slice(None, None, s) for s in self.geometry.stride))
        x = x.movedim(1, -1)[strided].flatten(1, -2)  # (n, t, c)
        return OuterProducts(x, self.g[:, 0].flatten(2).mT)

    def padded(self, x: Tensor) -> Tensor:
        """Return images (n, c, *space) with the convolution's border of zeros."""
        sides = [side for pad in reversed(self.geometry.padding) for side in (pad, pad)]
        return F.pad(x, sides) if any(sides) else x  # padding by nothing would copy


def windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the windows of padded images that a kernel meets, a view: (n, c, *positions, *kernel).

    x: (n, c, *space). kernel, stride, dilation: a number per dimension of space.
    """
    for dim, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, (size - 1) * gap + 1, step)[..., ::gap]
    return x


def samples_per_call(operands: ConvOperands) -> int:
    """Return how many samples share a grouped convolution.

    Enough to share its fixed cost, few enough to stay in the cache, and a multiple of the number
    of threads, to keep all cores busy.
    """
    most = min(
        _MAX_SAMPLES,
        max(4, _MAX_GROUPS // operands.geometry.groups),
        _CACHE_BYTES // bytes_per_sample(operands),
    )
    threads = max(2, torch.get_num_threads())
    return max(threads, most - most % threads)


def bytes_per_sample(operands: ConvOperands) -> int:
    """Return the bytes of the images, output gradients and weight gradient of one sample."""
    sizes = operands.x.shape[1:], operands.g.shape[1:], operands.shape
    return operands.x.element_size() * sum(math.prod(size) for size in sizes)
