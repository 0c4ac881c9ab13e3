"""Ways to form a convolution's weight gradient for each sample, a few samples at a time.

- direct: samples laid side by side as groups of one grouped convolution, which runs at nearly the
  speed of the ordinary weight gradient.
- alone: sample by sample, where one fills a call: nothing is laid side by side.
- slices, in three dimensions: for each depth of the kernel, the weight gradient of a convolution
  in two dimensions, over a batch of slices. Nothing is copied; better for large volumes.
- exchanged, where every channel is its own group: the gradient is a convolution of the image with
  the gradient as its kernel.
- columns: from unfolded patches, as a plain product; better where many output channels share the
  price of unfolding.

Each yields gradients (m, o, c / groups, *kernel) of the samples in their order, in any memory
format. What has the norm without forming them is in `conv_methods`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upslope.gradnorm.parts import Outer, chunks

if TYPE_CHECKING:
    from upslope.gradnorm.kernels.conv_part import ConvPart

_BYTES = 3 << 20
"""Bytes that a grouped convolution takes and gives: more leave the cache."""
_MOST = 64
"""Samples a call at most: its fixed price is well shared then."""
FEW = 4
"""Input channels up to which images are unfolded channel by channel."""


def direct(part: ConvPart, scratch: int) -> Iterator[Tensor]:
    """By grouped convolutions."""
    n, size = len(part), max(1, min(scratch // _bytes(part), together(part)))
    starts = list(range(0, n, size))
    if len(starts) > 1 and size > 1 and n % size == 1:  # no call for a single one: the slowest
        starts.pop()
    for a, b in itertools.pairwise([*starts, n]):
        yield part.dense(slice(a, b))


def together(part: ConvPart) -> int:
    """Samples a call: enough to share its fixed price, and few enough to stay in the cache.

    As many for every thread, to keep all cores busy.
    """
    most = min(_MOST, max(4, 256 // part.geometry.groups), _BYTES // _bytes(part))
    threads = max(2, torch.get_num_threads())
    return max(threads, most - most % threads)


def _bytes(part: ConvPart) -> int:
    """Bytes of an image, its gradient and the weight's gradient, for one sample."""
    sizes = part.x.shape[1:], part.g.shape[1:], part.shape
    return part.x.element_size() * sum(math.prod(size) for size in sizes)


def alone(part: ConvPart, scratch: int) -> Iterator[Tensor]:  # noqa: ARG001
    """By one call of the library for each sample."""
    s, p, d, groups = part.geometry
    stencil = part.x.new_empty(()).expand(part.shape)
    for g, x in zip(_images(part.g), _images(part.x), strict=True):
        _, gradient, _ = torch.ops.aten.convolution_backward.default(
            g, x, stencil, None, s, p, d, False, [0] * len(s), groups, (False, True, False)
        )
        yield gradient[None]


def _images(x: Tensor) -> Sequence[Tensor]:
    """(n, k, c, *space) -> n of (k, c, *space)."""
    # A single image that was cut, not indexed, is still known to have its channels last.
    return torch.split(x[:, 0], 1) if x.shape[1] == 1 else x.unbind()


def slices(part: ConvPart, scratch: int) -> Iterator[Tensor]:  # noqa: ARG001
    """By convolutions of slices."""
    (s, *plane_s), (p, *plane_p), (d, *plane_d), _ = part.geometry
    o, c, depth, *kernel = part.shape
    extent, positions = part.x.shape[3], part.g.shape[3]
    stencil = part.x.new_empty(()).expand(o, c, *kernel)
    for x, g in zip(part.x[:, 0].transpose(1, 2), part.g[:, 0].transpose(1, 2), strict=True):
        found = []  # x: (slices, c, h, w), g: (positions, o, h, w)
        for offset in (k * d - p for k in range(depth)):
            low = max(0, -(offset // s))
            high = min(positions, (extent - 1 - offset) // s + 1)
            if low < high:
                _, gradient, _ = torch.ops.aten.convolution_backward(
                    g[low:high], x[low * s + offset : (high - 1) * s + offset + 1 : s], stencil,
                    None, plane_s, plane_p, plane_d, False, [0, 0], 1, (False, True, False),
                )  # fmt: skip
                found.append(gradient)
            else:
                found.append(x.new_zeros(stencil.shape))
        yield torch.stack(found, dim=2)[None]


def exchanged(part: ConvPart, scratch: int) -> Iterator[Tensor]:
    """By convolutions of images with gradients, a channel each."""
    s, p, d, _ = part.geometry
    n, _, o = part.g.shape[:3]
    for c in chunks(n, 4 * part.x.element_size() * part.x[0].numel(), scratch):
        x, g = part.x[c, 0].flatten(0, 1)[None], part.g[c, 0].flatten(0, 1)[:, None]
        gradient = torch.convolution(
            x.contiguous(), g.contiguous(), None, d, p, s, False, [0] * len(s), x.shape[1]
        )
        for dim, size in enumerate(part.shape[2:], start=2):  # beyond: rows that no step reached
            gradient = gradient.narrow(dim, 0, size)
        yield gradient.reshape(-1, o, *part.shape[1:])


def columns(part: ConvPart, scratch: int) -> Iterator[Tensor]:
    """By products of gradients with patches."""
    _, c, *kernel = part.shape
    for x, g in unfolded(part, scratch):
        for product in Outer(x, g).gradients(scratch):  # (m, o, c * taps)
            if _taps_first(part):
                yield torch.unflatten(product, 2, (*kernel, c)).movedim(-1, 2)
            else:
                yield torch.unflatten(product, 2, (c, *kernel))


def pointwise(part: ConvPart, scratch: int) -> Iterator[Tensor]:
    """By products of gradients with images, where the kernel has a single entry."""
    for product in part.pointwise().gradients(scratch):
        yield product.view(-1, *part.shape)


def unfolded(part: ConvPart, scratch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Patches (m, t, c * taps) and gradients (m, t, o), a few samples at a time."""
    t, taps = math.prod(part.g.shape[3:]), math.prod(part.shape[2:])
    each = part.x.element_size() * t * taps * part.shape[1]
    for c in chunks(len(part), each, scratch):
        yield _patches(part, part.x[c, 0]), part.g[c, 0].flatten(2).mT


def _taps_first(part: ConvPart) -> bool:
    """Whether the entries of a patch are ordered by taps, and by channels among those of one."""
    return part.shape[1] > FEW and part.x.stride(2) == 1


def _patches(part: ConvPart, x: Tensor) -> Tensor:
    """(n, c, *space) -> (n, t, c * taps), channels and taps in either order."""
    s, _, d, _ = part.geometry
    spaces, few = len(s), part.shape[1] <= FEW
    if few:
        x = x.contiguous()
    x = part.padded(x)
    for dim, (k, step, gap) in enumerate(zip(part.shape[2:], s, d, strict=True), start=2):
        x = x.unfold(dim, (k - 1) * gap + 1, step)[..., ::gap]
    # Now (n, c, *positions, *taps): copied so that what lies together stays together.
    positions, taps = range(2, 2 + spaces), range(2 + spaces, 2 + 2 * spaces)
    if few:
        return x.permute(0, 1, *taps, *positions).flatten(2 + spaces).flatten(1, -2).mT
    order = (*taps, 1) if _taps_first(part) else (1, *taps)
    return x.permute(0, *positions, *order).flatten(1 + spaces).flatten(1, -2)
