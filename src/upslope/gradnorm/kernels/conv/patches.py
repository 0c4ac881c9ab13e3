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


def pixels_by_tap(operands: ConvOperands, scratch: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield the pixels that each entry of a kernel meets, and output gradients, without groups.

    A few samples at a time. Pixels: views (m, *positions, c), with the channels last in memory.
    Output gradients: (m, t, o).
    """
    s, _, d, _ = operands.geometry
    kernel, positions = operands.shape[2:], operands.g.shape[3:]
    bytes_each = operands.x.element_size() * math.prod((*positions, *operands.shape[1:]))
    for c in chunks(len(operands), bytes_each, scratch):
        x = operands.pad(operands.x[c, 0]).movedim(1, -1).contiguous().movedim(-1, 1)
        x = windows(x, kernel, s, d)
        for dim, size in enumerate(positions, start=2):
            x = x.narrow(dim, 0, size)  # of a transposed convolution there may be more
        pixels = [x.movedim(1, -1 - len(kernel))]  # (m, *positions, c, *kernel)
        for _ in kernel:
            pixels = [view for view_of_all in pixels for view in view_of_all.unbind(len(s) + 2)]
        yield pixels, operands.g[c, 0].flatten(2).mT


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
