"""The parts of an image that a kernel meets: windows, shifted signals, unfolded patches.

Called by the methods of `gradients` and `methods` that multiply them with output gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import chunks
from upslope.gradnorm.kernels.conv.operands import ConvOperands

_FEW_CHANNELS = 4
"""Input channels up to which images are unfolded channel by channel: rows of so few channels are
too short to be copied as a whole."""


def windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the windows of padded images that a kernel meets, a view: (n, c, *positions, *kernel).

    x: (n, c, *space). kernel, stride, dilation: a number per dimension of space.
    """
    for dim, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, (size - 1) * gap + 1, step)[..., ::gap]
    return x


def tap_windows(operands: ConvOperands) -> Iterator[tuple[int, slice, slice]]:
    """Yield each tap of a kernel in one dimension that meets pixels: at which positions, and which.

    operands: of a convolution of stride 1.
    """
    (padding,), (gap,) = operands.geometry.padding, operands.geometry.dilation
    extent, positions = operands.x.shape[3], operands.g.shape[3]
    for tap in range(operands.shape[2]):
        offset = tap * gap - padding
        low, high = max(0, -offset), min(positions, extent - offset)
        if low < high:
            yield tap, slice(low, high), slice(low + offset, high + offset)


def patches(operands: ConvOperands, scratch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patches (m, t, c * taps) and output gradients (m, t, o), a few samples at a time."""
    t, taps = math.prod(operands.g.shape[3:]), math.prod(operands.shape[2:])
    bytes_each = operands.x.element_size() * t * taps * operands.shape[1]
    for c in chunks(len(operands), bytes_each, scratch):
        yield _unfold(operands, operands.x[c, 0]), operands.g[c, 0].flatten(2).mT


def columns_of_patches(operands: ConvOperands) -> Tensor | None:
    """Return the place of each entry of a patch among the weight's columns; None if in order."""
    if not has_taps_first(operands):
        return None
    _, c, *kernel = operands.shape
    places = torch.arange(c * math.prod(kernel), device=operands.x.device)
    return places.view(c, -1).T.flatten()


def has_taps_first(operands: ConvOperands) -> bool:
    """Whether a patch is ordered by the kernel's taps, and by channels within a tap."""
    return operands.shape[1] > _FEW_CHANNELS and operands.x.stride(2) == 1


def _unfold(operands: ConvOperands, x: Tensor) -> Tensor:
    """(n, c, *space) -> (n, t, c * taps), channels and taps in either order."""
    s, _, d, _ = operands.geometry
    spaces, few = len(s), operands.shape[1] <= _FEW_CHANNELS
    if few:
        x = x.contiguous()
    # Rows of positions, where these lie last in memory; otherwise rows of channels.
    by_positions = few or (x.is_contiguous() and not has_taps_first(operands))
    x = operands.pad(x)
    x = windows(x, operands.shape[2:], s, d)  # (n, c, *positions, *taps)
    # The copy keeps together what lies together in memory.
    positions, taps = range(2, 2 + spaces), range(2 + spaces, 2 + 2 * spaces)
    if by_positions:
        return x.permute(0, 1, *taps, *positions).flatten(2 + spaces).flatten(1, -2).mT
    order = (*taps, 1) if has_taps_first(operands) else (1, *taps)
    return x.permute(0, *positions, *order).flatten(1 + spaces).flatten(1, -2)
