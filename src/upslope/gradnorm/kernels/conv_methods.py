"""Ways to the norm of a convolution's per-sample weight gradient, and what each costs.

    dL/dW[:, :, k] = sum_l g_l x_(l*s + k*d)^T        for position l and offset k of the kernel

- direct, alone, slices, exchanged, columns: from the gradient itself (`conv_gradients`).
- entries, in one dimension and with stride 1: for each entry of the kernel, one product of the
  signals shifted by so much. Nothing is copied.
- Gram: <x_l, x_l'> summed over the kernel's offsets, times <g_l, g_l'> (the ghost norm): for t
  positions, t^2 (c k + o) multiply-adds from unfolded patches.
- shifted Gram, where the stride is 1: the Gram matrix of patches is a sum of shifted entries of
  the Gram matrix of single pixels, sum_k P[l + k, l' + k] with P = X X^T, so that the unfolding
  and the factor k go: about t^2 (c + o) multiply-adds and two short window sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upslope.gradnorm.kernels import conv_gradients
from upslope.gradnorm.kernels.geometry import Geometry
from upslope.gradnorm.parts import Outer, chunks, squared_norms, wide
from upslope.gradnorm.products import WORTH, products

if TYPE_CHECKING:
    from upslope.gradnorm.kernels.conv_part import ConvPart

_CALL = 1e7
"""Price of calling a grouped convolution, in multiply-adds: about 0.1 ms."""
_GROUP = 4e5
"""Price of one more group in it."""
_COPY = 20.0
"""Price of moving an entry to where a grouped convolution wants it, in multiply-adds."""
_WRITE = 100.0
"""Price of an entry of the gradient, which the library writes in its own order and copies back."""
_WINDOWS = 3 << 20
"""Bytes of Gram matrices and their window sums that stay in the cache nearest to a core."""
_UNFOLD = 22.0
"""Price of copying an entry of a patch, in multiply-adds."""


def best(part: ConvPart) -> str:
    """The cheapest method."""
    estimated = costs(part)
    return min(estimated, key=estimated.__getitem__)


def costs(part: ConvPart) -> Mapping[str, float]:
    """Method -> estimated cost a sample, in multiply-adds of a well-fed matrix product."""
    together = conv_gradients.together(part)
    return _costs(part.x.shape, part.g.shape, part.shape, part.geometry, together)


@functools.lru_cache(4096)  # asked for every layer of every batch
def _costs(
    x: torch.Size, g: torch.Size, shape: tuple[int, ...], geometry: Geometry, together: int
) -> Mapping[str, float]:
    t, taps = math.prod(g[3:]), math.prod(shape[2:])
    o, c, *kernel = shape
    n, images = g[:2]
    stride, groups = geometry.stride, geometry.groups
    work, weights = images * t * taps * o * c, math.prod(shape)
    moved = math.prod(x[1:]) + math.prod(g[1:])
    rows, columns = (8, 8) if len(kernel) == 3 else (16, 4)  # blocks of channels are filled up
    filled = images * t * taps * max(o, rows) * max(c, columns)
    copied = (2 if len(kernel) == 3 else 1) * _COPY * moved  # volumes come from beyond the cache
    direct = filled + copied + _WRITE * weights + _GROUP + _CALL / together
    # In three dimensions a single sample finds no fast form.
    found = {"direct": direct * (15 if len(kernel) == 3 and n == 1 else 1)}
    if len(kernel) < 3:
        found["alone"] = images * t * taps * max(o, 4) * max(c, 4) + _WRITE * weights + 1.2 * _CALL
    if images == 1 and c == 1 and groups > 1:
        found["direct"] *= (max(kernel) / 3) ** 2
        found["exchanged"] = 60 / kernel[-1] * work + _COPY * moved
    if images > 1 or groups > 1:
        return found
    if len(kernel) == 3:
        found["slices"] = 1.05 * t * taps * o * max(c, 4) + 1.8e7
    if stride == (1,):
        found["entries"] = taps * _product(work // taps, o, c)
    unfolding = (2.5 if c <= conv_gradients.FEW and stride[-1] > 1 else 1) * _UNFOLD * t * taps * c
    found["columns"] = _product(work, o, taps * c) + unfolding
    # An entry of a Gram matrix is written, summed and multiplied: some 30 multiply-adds.
    found["gram"] = _product(t * t * (taps * c + o)) + 30.0 * t * t + unfolding
    if all(s == 1 for s in stride):
        pixels = math.prod(x[3:])
        found["shifted gram"] = (
            _product(pixels * pixels * c) + _product(t * t * o) + 30.0 * sum(kernel) * t * t
        )
    return found


def _product(work: int, *sides: int) -> float:
    """Price of a product by either library (`products`): more where its result has a short side."""
    price = 2.0 * work if work < WORTH else 1.05 * work + 2e6
    return price * (1 + 16 / min(sides)) if sides else price


def _entries(part: ConvPart, scratch: int) -> Tensor:
    _, (padding,), (gap,), _ = part.geometry
    o, c, taps = part.shape
    extent, positions = part.x.shape[3], part.g.shape[3]
    out = []
    for rows in chunks(len(part), part.x.element_size() * o * c, scratch):
        x, g = part.x[rows, 0], part.g[rows, 0]
        total = g.new_zeros(len(g), dtype=wide(g[:0]).dtype)
        for offset in (k * gap - padding for k in range(taps)):
            low, high = max(0, -offset), min(positions, extent - offset)
            if low < high:
                shifted = x[:, :, low + offset : high + offset]
                total += squared_norms(g[:, :, low:high] @ shifted.mT)
        out.append(total)
    return torch.cat(out)


def _columns(part: ConvPart, scratch: int) -> Tensor:
    pairs = conv_gradients.unfolded(part, scratch)
    return torch.cat([Outer(x, g).direct(scratch) for x, g in pairs])


def _gram(part: ConvPart, scratch: int) -> Tensor:
    pairs = conv_gradients.unfolded(part, scratch)
    return torch.cat([Outer(x, g).gram(scratch) for x, g in pairs])


def _shifted_gram(part: ConvPart, scratch: int) -> Tensor:
    _, padding, d, _ = part.geometry
    pixels, positions = part.x.shape[3:], part.g.shape[3:]
    each = 3 * part.x.element_size() * max(math.prod(pixels), math.prod(positions)) ** 2
    out = []
    for c in chunks(len(part), each, min(scratch, _WINDOWS)):
        x = part.x[c, 0].flatten(2)  # (n, c, pixels)
        gram = wide(products(x.mT, x)).view(len(x), *pixels, *pixels)
        for axis, (k, gap, pad, size) in enumerate(
            zip(part.shape[2:], d, padding, positions, strict=True), start=1
        ):
            offsets = [i * gap - pad for i in range(k)]
            gram = _window_sum(gram, (axis, axis + len(pixels)), offsets, size)
        g = part.g[c, 0].flatten(2)
        # A rounding error below zero is zero.
        out.append((gram.flatten(1) * products(g.mT, g).flatten(1)).sum(dim=1).clamp_min_(0))
    return torch.cat(out)


def _window_sum(gram: Tensor, axes: tuple[int, int], offsets: Sequence[int], size: int) -> Tensor:
    """sum_k gram[l + offset_k, l' + offset_k] along one axis of rows and columns, l < size.

    What lies outside is zero: the padding of the image never enters the products.
    """
    shape = list(gram.shape)
    extent = shape[axes[0]]
    for axis in axes:
        shape[axis] = size
    total = gram.new_zeros(shape)
    for offset in offsets:
        low, high = max(0, -offset), min(size, extent - offset)
        if low < high:
            target, source = total, gram
            for axis in axes:
                target = target.narrow(axis, low, high - low)
                source = source.narrow(axis, low + offset, high - low)
            target += source
    return total


def _explicit(
    gradients: Callable[[ConvPart, int], Iterator[Tensor]],
) -> Callable[[ConvPart, int], Tensor]:
    return lambda part, scratch: torch.cat([squared_norms(g) for g in gradients(part, scratch)])


METHODS: dict[str, Callable[[ConvPart, int], Tensor]] = {
    "direct": _explicit(conv_gradients.direct),
    "alone": _explicit(conv_gradients.alone),
    "exchanged": _explicit(conv_gradients.exchanged),
    "columns": _columns,
    "slices": _explicit(conv_gradients.slices),
    "entries": _entries,
    "gram": _gram,
    "shifted gram": _shifted_gram,
}
"""Part and bytes of scratch -> (n,) squared norms."""
