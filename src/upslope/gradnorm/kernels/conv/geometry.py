"""The operands of a convolution's weight gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.per_sample_gradients import OuterProducts


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
        x = self.pad(self.x[:, 0])
        strides_index = (slice(None), *(slice(None, None, s) for s in self.geometry.stride))
        x = x.movedim(1, -1)[strides_index].flatten(1, -2)  # (n, t, c)
        return OuterProducts(x, self.g[:, 0].flatten(2).mT)

    def pad(self, x: Tensor) -> Tensor:
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
