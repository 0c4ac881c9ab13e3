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
        x = x.unfold(dim, (size - 1) * gap + 1, step)
        x = x[..., ::gap] if gap > 1 else x
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
    """Yield patches and output gradients, a few samples at a time, of each group by itself.

    Patches: (m * groups, t, c / groups * taps). Output gradients: (m * groups, t, o / groups).
    """
    t, taps = math.prod(operands.g.shape[3:]), math.prod(operands.shape[2:])
    bytes_each = operands.x.element_size() * t * taps * operands.x.shape[2]
    for c in chunks(len(operands), bytes_each, scratch):
        g = torch.unflatten(operands.g[c, 0], 1, (operands.geometry.groups, -1))
        yield _unfold(operands, operands.x[c, 0]), g.flatten(3).mT.flatten(0, 1)


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
    """(n, c, *space) -> (n * groups, t, c / groups * taps), channels and taps in either order."""
    s, _, d, groups = operands.geometry
    spaces, few = len(s), operands.shape[1] <= _FEW_CHANNELS
    if few:
        x = x.contiguous()
    # Rows of positions, where these lie last in memory; otherwise rows of channels.
    by_positions = few or (x.is_contiguous() and not has_taps_first(operands))
    x = operands.pad(x)
    x = torch.unflatten(windows(x, operands.shape[2:], s, d), 1, (groups, -1))
    # From here on (n, groups, c, *positions, *taps). The copy keeps together what lies together in
    # memory.
    positions, taps = range(3, 3 + spaces), range(3 + spaces, 3 + 2 * spaces)
    if by_positions:
        rows = x.permute(0, 1, 2, *taps, *positions).flatten(3 + spaces).flatten(2, -2).mT
    else:
        order = (*taps, 2) if has_taps_first(operands) else (2, *taps)
        rows = x.permute(0, 1, *positions, *order).flatten(2 + spaces).flatten(2, -2)
    return rows.flatten(0, 1)
