"""Ways to form a convolution's weight gradient for each sample.

- direct: the samples become the groups of one grouped convolution, which runs at nearly the speed
  of the ordinary weight gradient of a batch.
- per_sample: one call of the library for each sample, where one sample fills a call; nothing is
  copied into groups.
- per_depth_slice, in three dimensions: for each depth of the kernel, the weight gradient of a
  convolution in two dimensions, over a batch of slices. Nothing is copied; better for large
  volumes.
- depthwise, where every channel is its own group: the weight gradient is a convolution of the image
  with the output gradient as its kernel.
- windows, for the same layers: the sum of the windows that positions of the output gradient see,
  each times its gradient; where there are few positions.
- per_tap, in one dimension and with stride 1: for each tap of the kernel, one product of the
  signals shifted by so much. Nothing is copied.
- im2col: a matrix product with unfolded patches, one for each group; better where many output
  channels share the cost of unfolding, or where few positions have large kernels.

Each is a generator of gradients (m, o, c / groups, *kernel), in the order of the samples and in any
memory format. `methods` has the norms that need no gradient.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import chunks, in_cache
from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts
from upslope.gradnorm.kernels.conv.operands import ORDERS, ConvOperands
from upslope.gradnorm.kernels.conv.patches import (
    bytes_of_patches,
    has_taps_first,
    patches,
    patches_in_slabs,
    tap_windows,
    windows_met,
)

_CACHE_BYTES = 3 << 20
"""Bytes of operands and results of one grouped convolution: with more, they leave the cache."""

_MAX_SAMPLES = 64
"""Samples per grouped convolution at most: its fixed cost is well shared then."""

_MAX_GROUPS = 8192
"""Groups per call that a layer with groups of its own may have. Set by hand: with up to so many,
one call for all samples was the fastest."""

_PLAIN_WEIGHTS = 0.25
"""Entries of the weight gradient per entry of image and output gradient from which grouped layers
are laid out with positions last: the library then writes the gradients twice as fast, which
outweighs slower copies. Set by hand."""

_BLOCK_BYTES = 1 << 20
"""Bytes of gradients that are handed on together: a call for all samples is cheaper than one for
each, as long as what was written is still in the cache when it is read."""

SLAB_BYTES = 2 << 20
"""Bytes of patches that one product takes of a sample that has more: they are read while they are
in the cache, and a volume's need no memory. Twice as many or half are as fast."""


def samples_per_call(operands: ConvOperands) -> int:
    """Return how many samples share a grouped convolution.

    Enough to share its fixed cost, few enough to stay in the cache, and a multiple of the number
    of threads, to keep all cores busy.
    """
    return _sizes(operands)[1]


def _sizes(operands: ConvOperands) -> tuple[int, int]:
    """Return the bytes of a sample's operands and weight gradient, and `samples_per_call`."""
    return _sizes_of(
        operands.x.shape[1:],
        operands.g.shape[1:],
        operands.shape,
        operands.geometry.groups,
        operands.x.element_size(),
        torch.get_num_threads(),
    )


@functools.lru_cache(4096)  # every layer of every batch asks, and networks have few shapes
def _sizes_of(
    x: torch.Size, g: torch.Size, shape: tuple[int, ...], groups: int, element: int, threads: int
) -> tuple[int, int]:
    bytes_each = element * sum(math.prod(size) for size in (x, g, shape))
    most = min(_MAX_SAMPLES, max(4, _MAX_GROUPS // groups), _CACHE_BYTES // bytes_each)
    threads = max(2, threads)
    return bytes_each, max(threads, most - most % threads)


def direct(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield gradients by grouped convolutions of as many samples as stay in the cache."""
    n = len(operands)
    bytes_each, together = _sizes(operands)
    size = max(1, in_cache(together * bytes_each, scratch) // bytes_each)
    starts = list(range(0, n, size))
    if len(starts) > 1 and size > 1 and n % size == 1:  # a call of one sample is the slowest
        starts.pop()
    for a, b in itertools.pairwise([*starts, n]):
        yield group_gradients(operands, slice(a, b))


def group_gradients(operands: ConvOperands, rows: slice) -> Tensor:
    """Return the gradients of some samples, (len(rows), *shape), by one grouped convolution."""
    x, g = operands.x, operands.g
    if rows != slice(0, len(g)):
        x, g = x[rows], g[rows]
    n = len(x)
    s, p, d, groups = operands.geometry
    is_plain = prefers_plain(x.shape, g.shape, operands.shape, groups)
    as_groups = _as_plain_groups if is_plain else _as_groups
    x = as_groups(x)
    stencil = _stencil(x, (n * operands.shape[0], *operands.shape[1:]))
    gradient: Tensor = torch.ops.aten.convolution_backward.default(
        as_groups(g), x, stencil, None, s, p, d,
        False, [0] * len(s), n * groups, (False, True, False),
    )[1]  # fmt: skip
    return gradient.view(n, *operands.shape)


def _stencil(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what stands for a weight of which only sizes, type and order of memory are asked.

    It has memory, and that of the images' order, because the library would else copy it.
    """
    order = ORDERS.get(x.dim())
    if order is None or x.is_contiguous() or not x.is_contiguous(memory_format=order):
        return x.new_empty(shape)
    # A single image may have any stride from one image to the next. With one that is too small,
    # PyTorch takes image and weight to be in different orders: in float64, and with groups, half
    # of the gradient is then wrong.
    if x.stride(0) < math.prod(x.shape[1:]):
        return x.new_empty(shape)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)


def _as_groups(x: Tensor) -> Tensor:
    """(n, k, c, *space) -> (k, n * c, *space): samples become groups of channels.

    Channels that lie last in memory stay there: whole rows of them are copied.
    """
    if x.dim() >= 5 and x.stride(2) == 1:
        n, k, c, *space = x.shape
        last = x.permute(1, *range(3, x.dim()), 0, 2).reshape(k, *space, n * c)
        return last.movedim(-1, 1)
    return _as_plain_groups(x)


def _as_plain_groups(x: Tensor) -> Tensor:
    """Return samples as groups of channels, as `_as_groups`, with the positions last in memory."""
    n, k, c, *space = x.shape
    # A single sample, for which it is a view, may have its channels last.
    return (x if k == 1 else x.transpose(0, 1)).reshape(k, n * c, *space).contiguous()


def prefers_plain(x: torch.Size, g: torch.Size, shape: tuple[int, ...], groups: int) -> bool:
    """Whether the samples of a grouped layer are laid out by `_as_plain_groups`.

    x, g, shape: sizes of images, output gradients and weight, as of `ConvOperands`.
    """
    if groups == 1 or shape[1] == 1 or len(shape) != 4:
        return False
    return len(g) * math.prod(shape) >= _PLAIN_WEIGHTS * (x.numel() + g.numel())


def per_sample(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield gradients by one call of the library for each sample."""
    s, p, d, groups = operands.geometry
    stencil = _stencil(operands.x[:, 0], operands.shape)
    images = zip(_images(operands.g), _images(operands.x), strict=True)
    bytes_each = operands.x.element_size() * math.prod(operands.shape)
    for rows in chunks(len(operands), bytes_each, min(scratch // 2, _BLOCK_BYTES)):
        gradients = [
            torch.ops.aten.convolution_backward.default(
                g, x, stencil, None, s, p, d, False, [0] * len(s), groups, (False, True, False)
            )[1]
            for g, x in itertools.islice(images, rows.stop - rows.start)
        ]
        # In the order of their memory: `stack` would copy to another one.
        yield _join(gradients) if len(gradients) > 1 else gradients[0][None]


def _join(gradients: list[Tensor]) -> Tensor:
    """Return gradients (o, c, *kernel) as one tensor (m, o, c, *kernel), in memory's order."""
    if gradients[0].stride(1) == 1:  # channels last
        return torch.stack([gradient.movedim(1, -1) for gradient in gradients]).movedim(-1, 2)
    return torch.stack(gradients)


def _images(x: Tensor) -> Sequence[Tensor]:
    """(n, k, c, *space) -> n tensors (k, c, *space)."""
    # Indexing a single image loses the strides that mark its channels as last; splitting keeps
    # them, and with them the library's faster path.
    return torch.split(x[:, 0], 1) if x.shape[1] == 1 else x.unbind()


def in_memory_order(gradient: Tensor) -> Tensor:
    """Return gradients (m, o, c, *kernel) with dimensions as they lie in memory: c last, or o.

    Of others no reshape is a view, and each pass over them a slow one.
    """
    if gradient.stride(1) == 1:
        return gradient.movedim(1, -1)
    return gradient.movedim(2, -1) if gradient.stride(2) == 1 else gradient


def per_depth_slice(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:  # noqa: ARG001
    """Yield gradients by two-dimensional convolutions of the slices of a volume."""
    (s, *plane_s), (p, *plane_p), (d, *plane_d), _ = operands.geometry
    o, c, depth, *kernel = operands.shape
    extent, positions = operands.x.shape[3], operands.g.shape[3]
    volumes = operands.x[:, 0].transpose(1, 2), operands.g[:, 0].transpose(1, 2)
    stencil = _stencil(volumes[0][0], (o, c, *kernel))
    for x, g in zip(*volumes, strict=True):
        depths = []  # x: (slices, c, h, w), g: (positions, o, h, w)
        for offset in (k * d - p for k in range(depth)):
            low = max(0, -(offset // s))
            high = min(positions, (extent - 1 - offset) // s + 1)
            if low < high:
                _, gradient, _ = torch.ops.aten.convolution_backward(
                    g[low:high], x[low * s + offset : (high - 1) * s + offset + 1 : s], stencil,
                    None, plane_s, plane_p, plane_d, False, [0, 0], 1, (False, True, False),
                )  # fmt: skip
                depths.append(gradient)
            else:
                depths.append(x.new_zeros(stencil.shape))
        yield torch.stack(depths, dim=2)[None]


def depthwise(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield gradients by convolutions of images with output gradients, one channel each."""
    s, p, d, _ = operands.geometry
    n, _, o = operands.g.shape[:3]
    for c in chunks(n, 4 * operands.x.element_size() * operands.x[0].numel(), scratch):
        x = operands.x[c, 0].flatten(0, 1)[None]
        g = operands.g[c, 0].flatten(0, 1)[:, None]
        gradient = torch.convolution(
            x.contiguous(), g.contiguous(), None, d, p, s, False, [0] * len(s), x.shape[1]
        )
        # Entries beyond the kernel's size belong to rows of the image that no stride reached.
        for dim, size in enumerate(operands.shape[2:], start=2):
            gradient = gradient.narrow(dim, 0, size)
        yield gradient.reshape(-1, o, *operands.shape[1:])


def windows_of_channels(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield gradients by products of output gradients with windows, channel by channel."""
    spaces, positions = len(operands.shape) - 2, operands.g.shape[3:]
    taps = range(2 + spaces, 2 + 2 * spaces)
    bytes_each = operands.x.element_size() * math.prod(positions) * math.prod(operands.shape)
    for rows in chunks(len(operands), bytes_each, scratch):
        x = operands.pad(operands.x[rows, 0])
        if operands.shape[0] > x.shape[1]:  # each channel of the image has several of the output
            x = x.repeat_interleave(operands.shape[0] // x.shape[1], dim=1)
        x = windows_met(operands, x)
        g = operands.g[rows, 0].movedim(1, -1)  # (m, *positions, c)
        g = g.reshape(len(g), *(1,) * spaces, *g.shape[1:])
        # A copy even where nothing is out of order: these are the images' own numbers.
        products = x.permute(0, *taps, *range(2, 2 + spaces), 1).clone(
            memory_format=torch.contiguous_format
        )
        products.mul_(g)
        sums = products.flatten(1 + spaces, 2 * spaces).sum(dim=1 + spaces)  # (m, *kernel, c)
        yield sums.movedim(-1, 1).unsqueeze(2)


def per_tap(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield gradients by products of output gradients with shifted signals."""
    o, c, taps = operands.shape
    bytes_each = operands.x.element_size() * o * c * taps
    for rows in chunks(len(operands), bytes_each, in_cache(_BLOCK_BYTES, scratch)):
        x, g = operands.x[rows, 0], operands.g[rows, 0]
        # A sample's own lies together: sums over it would else be slow.
        gradient = g.new_empty(len(g), taps, o, c)
        pairs = {tap: pair for tap, *pair in tap_windows(operands)}
        for tap in range(taps):
            if tap in pairs:
                positions, pixels = pairs[tap]
                torch.bmm(g[:, :, positions], x[:, :, pixels].mT, out=gradient[:, tap])
            else:
                gradient[:, tap] = 0
        yield gradient.movedim(1, -1)


def im2col(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield gradients by products of output gradients with patches."""
    c, *kernel = operands.shape[1:]
    for product in _products_with_patches(operands, scratch):  # (m, o, c * taps)
        if has_taps_first(operands):
            yield torch.unflatten(product, 2, (*kernel, c)).movedim(-1, 2)
        else:
            yield torch.unflatten(product, 2, (c, *kernel))


def _products_with_patches(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield output gradients times patches, (m, o, c / groups * taps), of a few samples."""
    most = in_cache(SLAB_BYTES, scratch)
    if bytes_of_patches(operands) > most:
        yield from (_product_by_slabs(operands, n, most) for n in range(len(operands)))
        return
    for x, g in patches(operands, in_cache(_BLOCK_BYTES, scratch)):
        products = OuterProducts(x, g)
        if operands.geometry.groups == 1:
            yield from products.gradients(scratch)
        else:  # groups of one sample stay together
            yield products.materialize(slice(None)).view(-1, operands.shape[0], x.shape[2])


def _product_by_slabs(operands: ConvOperands, sample: int, most: int) -> Tensor:
    """Return output gradients times patches, (1, o, c / groups * taps), of one sample.

    A few rows of positions go at a time. most: bytes of patches that go together.
    """
    slabs = patches_in_slabs(operands, sample, most)
    x, g = next(slabs)
    # Half precision sums in float32.
    product = (g.mT @ x).to(torch.promote_types(g.dtype, torch.float32))
    for x, g in slabs:
        product += g.mT @ x
    return product.to(g.dtype).view(1, operands.shape[0], -1)


def pointwise(operands: ConvOperands, scratch: int) -> Iterator[Tensor]:
    """Yield gradients by products of output gradients with images; needs `is_pointwise`."""
    for product in operands.pointwise().gradients(scratch):
        yield product.view(-1, *operands.shape)


GRADIENTS: Mapping[str, Callable[[ConvOperands, int], Iterator[Tensor]]] = {
    "direct": direct,
    "per_sample": per_sample,
    "per_depth_slice": per_depth_slice,
    "depthwise": depthwise,
    "windows": windows_of_channels,
    "im2col": im2col,
}
"""Name of a method -> a function of operands and bytes of scratch that yields the gradients.

Without `per_tap`, whose norm takes one tap after the other and never forms them (`methods`)."""

GENERATORS = {**GRADIENTS, "per_tap": per_tap}
"""Name of a method -> a function as in `GRADIENTS`, `per_tap` among them: for those who need the
gradients themselves."""
