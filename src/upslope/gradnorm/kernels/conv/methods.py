"""The per-sample weight gradient of a convolution, and ways to its norm.

    dL/dW[:, :, k] = sum_l g_l x_(l*s + k*d)^T        for position l and offset k of the kernel

- direct, per_sample, per_depth_slice, depthwise, per_tap, im2col: from the gradient itself
  (`gradients`).
- ghost (the ghost norm): <x_l, x_l'> summed over the kernel's taps, times <g_l, g_l'>; for t
  positions and k taps, t^2 (c k + o) multiply-adds from unfolded patches.
- shifted_ghost, where the stride is 1: the Gram matrix of patches is a sum of shifted entries of
  the Gram matrix of single pixels, sum_k P[l + k, l' + k] with P = X X^T. No unfolding and no
  factor k: about t^2 (c + o) multiply-adds and one short window sum per dimension, or, of few
  pixels, one product with a matrix of zeros and ones.

The library forms the gradient of a batch in one call; those of its samples would take as many calls
as there are samples. `cost_model` says which method is the cheapest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import SCRATCH, chunks, in_cache
from upslope.gradnorm.core.gradients.per_sample_gradients import (
    OuterPieces,
    OuterProducts,
    PerSampleGradient,
)
from upslope.gradnorm.core.gradients.sums_of_squares import (
    as_type_of,
    cancels,
    frobenius_norms,
    squared_norms,
    to_double,
    upcast,
)
from upslope.gradnorm.core.matrix_products import batched_products
from upslope.gradnorm.kernels.conv import cost_model, gradients
from upslope.gradnorm.kernels.conv.gradients import in_memory_order
from upslope.gradnorm.kernels.conv.operands import ConvOperands
from upslope.gradnorm.kernels.conv.patches import (
    bytes_of_patches,
    patches,
    pixels_by_tap,
    tap_windows,
)

_GRAM_BYTES = 3 << 20
"""Bytes of Gram matrices and their window sums that stay in the cache nearest to a core. Set by
hand: 32 images of 128 channels, 16 x 16, took 7.8 ms without the bound and 5.4 ms with it."""

_FEW_ENTRIES = 256
"""Entries of a sample's Gram matrix up to which its window sums are one product with a matrix: the
calls for all taps would take longer. Set by hand: of 8 images of 4 x 4 the product took 7 us and
the calls 60, of 8 x 8 21 ms and 0.1."""


def _per_tap(operands: ConvOperands, scratch: int) -> Tensor:
    o, c, _ = operands.shape
    out = []
    for rows in chunks(len(operands), operands.x.element_size() * o * c, scratch):
        x, g = operands.x[rows, 0], operands.g[rows, 0]
        total = g.new_zeros(len(g), dtype=upcast(g[:0]).dtype)  # half precision sums in float32
        for _, positions, pixels in tap_windows(operands):
            total += squared_norms(g[:, :, positions] @ x[:, :, pixels].mT)
        out.append(total)
    return torch.cat(out)


def _im2col(operands: ConvOperands, scratch: int) -> Tensor:
    if bytes_of_patches(operands) > in_cache(gradients.SLAB_BYTES, scratch):
        return torch.cat([squared_norms(one) for one in gradients.im2col(operands, scratch)])
    pairs = patches(operands, scratch)
    squares = torch.cat([OuterProducts(x, g).direct(scratch) for x, g in pairs])  # of each group
    return squares.view(len(operands), -1).sum(dim=1) if len(squares) > len(operands) else squares


def _ghost(operands: ConvOperands, scratch: int) -> Tensor:
    pairs = patches(operands, scratch)
    return torch.cat([OuterProducts(x, g).ghost(scratch) for x, g in pairs])


def _shifted_ghost(operands: ConvOperands, scratch: int) -> Tensor:
    _, padding, d, _ = operands.geometry
    pixels, positions = tuple(operands.x.shape[3:]), tuple(operands.g.shape[3:])
    side = max(math.prod(pixels), math.prod(positions))
    bytes_each = 3 * operands.x.element_size() * side**2
    out = []
    for c in chunks(len(operands), bytes_each, in_cache(_GRAM_BYTES, scratch)):
        x = operands.x[c, 0].flatten(2)  # (n, c, pixels)
        # Half precision sums in float32.
        gram = upcast(batched_products(x.mT, x))  # (n, pixels, pixels)
        if side**2 <= _FEW_ENTRIES:
            windows = _windows_of(
                pixels, positions, operands.shape[2:], padding, d, gram.dtype, gram.device
            )
            gram = gram.flatten(1) @ windows
        else:
            gram = _window_sums(gram, pixels, positions, operands.shape[2:], padding, d)
        g = operands.g[c, 0].flatten(2)
        other = batched_products(g.mT, g)
        sizes = frobenius_norms(gram) * frobenius_norms(other)
        # A sum of products of either sign can round to just below zero.
        total = (gram.flatten(1) * other.flatten(1)).sum(dim=1).clamp_min_(0)
        if (has_cancelled := cancels(total, sizes)) is not None:
            rows = dataclasses.replace(
                operands, x=operands.x[c][has_cancelled], g=operands.g[c][has_cancelled]
            )
            # These few are formed after all: the window sums have cancelled their digits.
            total[has_cancelled] = _im2col(rows, scratch).to(total)
        out.append(total)
    return torch.cat(out)


@functools.lru_cache(32)  # every layer of every batch asks, and networks have few shapes
def _windows_of(
    pixels: tuple[int, ...],
    positions: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(pixels^2, positions^2): zeros and ones by which Gram matrices give their window sums."""
    rows = torch.eye(math.prod(pixels) ** 2, dtype=dtype, device=device)
    return _window_sums(rows, pixels, positions, kernel, padding, dilation).flatten(1)


def _window_sums(
    gram: Tensor,
    pixels: tuple[int, ...],
    positions: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Return sum_k gram[l + k, l' + k] for positions l and l', (n, *positions, *positions).

    gram: (n, ...), with an entry for each pair of pixels.
    """
    gram = gram.view(len(gram), *pixels, *pixels)
    sizes = zip(kernel, dilation, padding, positions, strict=True)
    for axis, (k, gap, pad, size) in enumerate(sizes, start=1):
        offsets = [i * gap - pad for i in range(k)]
        gram = _window_sum(gram, (axis, axis + len(pixels)), offsets, size)
    return gram


def _window_sum(gram: Tensor, axes: tuple[int, int], offsets: Sequence[int], size: int) -> Tensor:
    """Return sum_k gram[l + offset_k, l' + offset_k] along one axis of rows and columns, l < size.

    Entries outside count as zero: the padding of the image never enters the products.
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


def _norms_of(
    gradients: Callable[[ConvOperands, int], Iterator[Tensor]],
) -> Callable[[ConvOperands, int], Tensor]:
    """Return the method that takes the norms of gradients that a generator forms."""

    def norms(operands: ConvOperands, scratch: int) -> Tensor:
        pieces = gradients(operands, scratch)
        squares = [squared_norms(in_memory_order(gradient)) for gradient in pieces]
        return squares[0] if len(squares) == 1 else torch.cat(squares)

    return norms


METHODS: Mapping[str, Callable[[ConvOperands, int], Tensor]] = {
    **{name: _norms_of(generator) for name, generator in gradients.GRADIENTS.items()},
    "im2col": _im2col,  # takes the norm of each block of a gradient while it is in the cache
    "per_tap": _per_tap,  # keeps the gradient of one tap alone
    "ghost": _ghost,
    "shifted_ghost": _shifted_ghost,
}
"""Name of a method -> a function of operands and bytes of scratch to (n,) squared norms."""


@dataclass(frozen=True)
class ConvWeightGradient(ConvOperands, PerSampleGradient):
    """The gradients of a convolution's weight, from its operands."""

    def squared_norms(self, scratch: int) -> Tensor:
        """See `PerSampleGradient`. By the cheapest method."""
        if self.is_pointwise:
            return self.pointwise().squared_norms(scratch)
        return METHODS[cost_model.best(self)](self, scratch)

    def materialize(self, rows: slice) -> Tensor:
        """See `PerSampleGradient`. By the cheapest method that forms them."""
        whole = rows == slice(0, len(self))
        operands = self if whole else dataclasses.replace(self, x=self.x[rows], g=self.g[rows])
        pieces = [*operands.dense_pieces(SCRATCH)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def dense_pieces(self, scratch: int) -> Iterator[Tensor]:
        """See `PerSampleGradient`. By the cheapest method that forms them."""
        if self.is_pointwise:
            return gradients.pointwise(self, scratch)
        generators = gradients.GENERATORS
        return generators[cost_model.best(self, generators)](self, scratch)

    def operand_bytes(self) -> int:
        """See `PerSampleGradient`. Images and output gradients."""
        return self.x.nbytes + self.g.nbytes

    def outer_products(self, scratch: int, most: float) -> Iterator[OuterPieces] | None:
        """See `PerSampleGradient`. Of the pixels that each entry of the kernel meets."""
        if self.is_pointwise:
            return self.pointwise().outer_products(scratch, most)
        several = self.x.shape[1] != 1 or self.geometry.groups != 1
        if several or math.prod(self.g.shape[3:]) > most:
            return None
        pieces = pixels_by_tap(self, scratch)
        return (OuterPieces(pixels, g) for pixels, g in pieces)

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """See `PerSampleGradient`. More images per sample, if all images have one size."""
        same = [
            self,
            *(o for o in others if isinstance(o, ConvWeightGradient) and self._matches(o)),
        ]
        if len(same) <= len(others):
            return None
        x, g = torch.cat([o.x for o in same], dim=1), torch.cat([o.g for o in same], dim=1)
        return ConvWeightGradient(x, g, self.geometry, self.shape)

    def in_double(self) -> ConvWeightGradient:
        """See `PerSampleGradient`. Gram matrices are products of the operands with themselves."""
        return dataclasses.replace(self, x=to_double(self.x), g=to_double(self.g))

    def inner_products(self, v: Tensor) -> Tensor | None:
        """Return <G_n, V> = <g_n, convolution of x_n with V>; see `PerSampleGradient`."""
        if self.x.is_complex():
            return None
        kernel = v.view(v.shape[0], *self.shape[1:])
        x, g = self.x.flatten(0, 1).to(v.dtype), self.g.flatten(0, 1)
        out = self._convolve(x, kernel, g)
        return (out * g).reshape(len(self), -1).sum(dim=1)

    def by_rows(self) -> ConvWeightGradient | None:
        """See `PerSampleGradient`. Row r is the correlation of images with one gradient, g_nr."""
        return None if self.x.is_complex() or self.geometry.groups > 1 else self

    @property
    def positions(self) -> int:
        """How many products a sample has; see `RowsOfProducts`."""
        return self.g.shape[1] * math.prod(self.g.shape[3:])

    def products_of_rows(self, v: Tensor) -> Tensor:
        """Return <G_nr, V_r> = <g_nr, convolution of x_n with V_r>; see `RowsOfProducts`."""
        x, g = as_type_of(v, self.x.flatten(0, 1)), self.g.flatten(0, 1)
        products = self._convolve(x, v, g) * g
        sums = products.sum(dim=list(range(2, g.dim())))
        return sums.view(len(self), -1, sums.shape[1]).sum(dim=1)

    def times_rows(self, factors: Tensor) -> ConvWeightGradient:
        """Return the gradients with each row times a number; see `RowsOfProducts`."""
        g = self.g * factors.view(-1, *(1,) * (self.g.dim() - 3))
        return dataclasses.replace(self, g=g)

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Return the inner products with left (x) right; see `PerSampleGradient`.

        They take a convolution with one output channel for each group, instead of all.
        """
        if self.x.is_complex():
            return None
        groups = self.geometry.groups
        n, k = self.g.shape[:2]
        kernel = right.view(1, *self.shape[1:]).repeat(groups, *(1,) * (len(self.shape) - 1))
        g = as_type_of(left, self.g.flatten(0, 1))  # (n k, o, *positions)
        once = self._convolve(as_type_of(right, self.x.flatten(0, 1)), kernel, g)
        space = math.prod(g.shape[2:])
        rows = g.reshape(len(g), groups, -1, space)
        weighted_rows = left.view(groups, 1, -1) @ rows  # (n k, groups, 1, l)
        products = once.reshape(len(g), groups, space) * weighted_rows[:, :, 0]
        return products.reshape(n, k, -1).sum(dim=(1, 2))

    def _convolve(self, x: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
        """Convolve images with a kernel, to the positions of `like`."""
        stride, padding, dilation, groups = self.geometry
        none = [0] * len(stride)
        out = torch.convolution(x, kernel, None, stride, padding, dilation, False, none, groups)
        # Strides leave a border that no position covers; the positions that there are come first.
        for dim, size in enumerate(like.shape[2:], start=2):
            out = out.narrow(dim, 0, size)
        return out

    def cost(self) -> tuple[str, float]:
        """Return the cheapest method and its cost; see `PerSampleGradient`."""
        layer = math.prod(self.shape) * math.prod(self.g.shape[3:]) * self.g.shape[1]
        method, cost = min(cost_model.costs(self).items(), key=lambda item: item[1])
        return method, 2.0 * layer + cost

    def _matches(self, other: ConvWeightGradient) -> bool:
        return (
            self.geometry == other.geometry
            and self.x.shape[2:] == other.x.shape[2:]
            and self.g.shape[2:] == other.g.shape[2:]
        )
