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


def windows_met(operands: ConvOperands, x: Tensor) -> Tensor:
    """Return the windows that have output gradients, of padded images (n, c, *space)."""
    s, _, d, _ = operands.geometry
    x = windows(x, operands.shape[2:], s, d)
    for dim, size in enumerate(operands.g.shape[3:], start=2):
        if x.shape[dim] > size:  # of a transposed convolution there may be more
            x = x.narrow(dim, 0, size)
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
    for c in chunks(len(operands), bytes_of_patches(operands), scratch):
        yield next(_unfold_in_slabs(operands, c, 1))


def bytes_of_patches(operands: ConvOperands) -> int:
    """Return the size of one sample's patches."""
    t, taps = math.prod(operands.g.shape[3:]), math.prod(operands.shape[2:])
    return operands.x.element_size() * t * taps * operands.x.shape[2]


def patches_in_slabs(
    operands: ConvOperands, sample: int, scratch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patches and output gradients of one sample, some rows of positions at a time.

    As `patches` does, with t the positions of these rows.
    """
    count = -(-bytes_of_patches(operands) // scratch)
    return _unfold_in_slabs(operands, slice(sample, sample + 1), count)


def pixels_by_tap(operands: ConvOperands, scratch: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield the pixels that each entry of a kernel meets, and output gradients, without groups.

    A few samples at a time. Pixels: views (m, *positions, c), with the channels last in memory.
    Output gradients: (m, t, o).
    """
    kernel, positions = operands.shape[2:], operands.g.shape[3:]
    bytes_each = operands.x.element_size() * math.prod((*positions, *operands.shape[1:]))
    for c in chunks(len(operands), bytes_each, scratch):
        x = operands.pad(operands.x[c, 0]).movedim(1, -1).contiguous().movedim(-1, 1)
        x = windows_met(operands, x)
        pixels = [x.movedim(1, -1 - len(kernel))]  # (m, *positions, c, *kernel)
        for _ in kernel:
            pixels = [
                view for view_of_all in pixels for view in view_of_all.unbind(len(kernel) + 2)
            ]
        yield pixels, operands.g[c, 0].flatten(2).mT


def has_taps_first(operands: ConvOperands) -> bool:
    """Whether a patch is ordered by the kernel's taps, and by channels within a tap."""
    return operands.shape[1] > _FEW_CHANNELS and operands.x.stride(2) == 1


def _unfold_in_slabs(
    operands: ConvOperands, samples: slice, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patches (m * groups, t, c / groups * taps) and output gradients, by rows of positions.

    Channels and taps of a patch come in either order. count: of slabs of rows, at the most.
    """
    groups = operands.geometry.groups
    x, spaces, few = (
        operands.x[samples, 0],
        len(operands.shape) - 2,
        operands.shape[1] <= _FEW_CHANNELS,
    )
    if few:
        x = x.contiguous()
    # Rows of positions, where these lie last in memory; otherwise rows of channels.
    by_positions = few or (x.is_contiguous() and not has_taps_first(operands))
    x = torch.unflatten(windows_met(operands, operands.pad(x)), 1, (groups, -1))
    g = torch.unflatten(operands.g[samples, 0], 1, (groups, -1))
    # From here on (n, groups, c, *positions, *taps). The copy keeps together what lies together in
    # memory.
    positions, taps = range(3, 3 + spaces), range(3 + spaces, 3 + 2 * spaces)
    order = (*taps, 2) if has_taps_first(operands) else (2, *taps)
    for rows, gradients in zip(x.chunk(count, dim=3), g.chunk(count, dim=3), strict=True):
        if by_positions:
            matrix = rows.permute(0, 1, 2, *taps, *positions).flatten(3 + spaces)
            matrix = matrix.flatten(2, -2).mT
        else:
            matrix = rows.permute(0, 1, *positions, *order).flatten(2 + spaces).flatten(2, -2)
        yield matrix.flatten(0, 1), gradients.flatten(3).mT.flatten(0, 1)
