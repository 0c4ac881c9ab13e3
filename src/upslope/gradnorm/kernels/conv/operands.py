"""The operands of a convolution's weight gradient: its images, output gradients and geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts

ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Number of a tensor's dimensions -> the memory format in which convolutions are fastest."""


class Geometry(NamedTuple):
    """Stride, zero padding and dilation in each dimension; groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


_WORTH_A_LOOK = 1 << 24
"""Multiply-adds of a convolution from which it pays to look where its gradient is zero. Set by
hand: a look at two positions takes 10 us, a hundredth of such a convolution's backward pass."""


class ReachedSignals(NamedTuple):
    """Signals between the first and the last position that some sample's gradient has reached.

    Of a network of causal convolutions that is asked for its last output, these are few.
    """

    x: Tensor
    """(n, c, pixels), those that the positions see, with the border's zeros."""
    g: Tensor
    """(n, o, positions)."""
    geometry: Geometry
    """That of the convolution, without padding."""
    start: int
    """The place of the first pixel in the whole signal, below zero if it is of the border."""

    def place(self, gradient: Tensor, extent: int) -> Tensor:
        """Return a gradient of x, (n, c, pixels), as that of the whole signals, (n, c, extent)."""
        whole = gradient.new_zeros(*gradient.shape[:2], extent)
        low, high = max(0, self.start), min(extent, self.start + gradient.shape[2])
        whole[:, :, low:high] = gradient[:, :, low - self.start : high - self.start]
        return whole


def reached_signals(
    x: Tensor, g: Tensor, geometry: Geometry, shape: tuple[int, ...]
) -> ReachedSignals | None:
    """Return the part of signals that gradients have reached; None if that is most, or unknown.

    Only on a CPU: a GPU would have to wait for the answer.

    x: (n, c, pixels). g: (n, o, positions), of the output. shape: the weight's.
    """
    if g.numel() * math.prod(shape[1:]) < _WORTH_A_LOOK or not g.is_cpu:
        return None
    positions = g.shape[2]
    # Where the first and the last position of a sample are reached, the others are taken to be.
    if positions < 2 or g.is_complex() or bool(g[0, :, :: positions - 1].any(dim=0).all()):
        return None
    # NaN is no zero. `any` takes several times as long, and absolute values memory of their own.
    places = (g.amax(dim=(0, 1)).ne(0) | g.amin(dim=(0, 1)).ne(0)).nonzero()[:, 0].tolist()
    if not places or 4 * (places[-1] + 1 - places[0]) > 3 * positions:
        return None
    (s,), (p,), (d,), groups = geometry
    first, end, extent = places[0], places[-1] + 1, x.shape[2]
    start, stop = first * s - p, (end - 1) * s + (shape[2] - 1) * d + 1 - p
    if start >= extent or stop <= 0:
        return None  # of the border alone
    pixels = F.pad(x[:, :, max(0, start) : stop], (max(0, -start), max(0, stop - extent)))
    return ReachedSignals(pixels, g[:, :, first:end], Geometry((s,), (0,), (d,), groups), start)


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
        return self.g.shape[0]  # of tensors `len` takes several times as long

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
