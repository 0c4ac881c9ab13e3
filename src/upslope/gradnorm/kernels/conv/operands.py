"""The operands of a convolution's weight gradient: its images, output gradients and geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.per_sample_gradients import OuterProducts

ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Number of a tensor's dimensions -> the memory format in which convolutions are fastest."""


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
        x = self.pad(self.x)
        for dim, stride in enumerate(self.geometry.stride, start=3):
            if stride > 1:
                x = x[(slice(None),) * dim + (slice(None, None, stride),)]
        n, _, o = self.g.shape[:3]
        t = math.prod(self.g.shape[3:])
        return OuterProducts(x.reshape(n, self.shape[1], t).mT, self.g.reshape(n, o, t).mT)

    def pad(self, x: Tensor) -> Tensor:
        """Return images (..., *space) with the convolution's border of zeros."""
        if not any(self.geometry.padding):
            return x  # padding by nothing would copy
        return F.pad(x, [side for pad in reversed(self.geometry.padding) for side in (pad, pad)])
