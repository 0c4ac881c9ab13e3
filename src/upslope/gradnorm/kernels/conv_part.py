"""The per-sample gradient of a convolution's weight, and seven ways to its norm.

For output position l and offset k of the kernel, dL/dW[:, :, k] = sum_l g_l x_(l*s + k*d)^T.

- direct: the weight gradient itself, for a few samples at a time. Samples laid side by side as
  groups of one grouped convolution run at nearly the speed of the ordinary weight gradient. With
  a kernel of one entry it is a plain sum of outer products.
- slices, in three dimensions: for each depth of the kernel, the weight gradient of a convolution
  in two dimensions, over a batch of slices. Nothing is copied; better for large volumes.
- entries, in one dimension and with stride 1: for each entry of the kernel, one product of the
  signal's shifted by so much. Nothing is copied.
- columns: the same from unfolded patches, as a plain product; better where many output channels
  share the price of unfolding.
- Gram: <x_l, x_l'> summed over the kernel's offsets, times <g_l, g_l'> (the ghost norm): for t
  positions, t^2 (c k + o) multiply-adds from unfolded patches.
- shifted Gram, where the stride is 1: the Gram matrix of patches is a sum of shifted entries of
  the Gram matrix of single pixels, sum_k P[l + k, l' + k] with P = X X^T, so that the unfolding
  and the factor k go: about t^2 (c + o) multiply-adds and two short window sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.kernels import winograd
from upslope.gradnorm.kernels.geometry import Geometry
from upslope.gradnorm.parts import Outer, Part, chunks, squared_norms, wide

_CALL = 4.5e6
"""Price of calling a grouped convolution, in multiply-adds: about 0.1 ms."""
_COPY = 20.0
"""Price of moving an entry to where a grouped convolution wants it, in multiply-adds."""
_UNFOLD = 30.0
"""Price of copying an entry of a patch, in multiply-adds."""
_WORK = 20_000_000
"""Multiply-adds of a grouped convolution beside which its call costs little."""
_FEW = 4
"""Input channels up to which images are unfolded channel by channel."""


@dataclass(frozen=True)
class ConvPart:
    """x: (n, k, c, *space), g: (n, k, o, *positions): k images a sample. shape: the weight's."""

    x: Tensor
    g: Tensor
    geometry: Geometry
    shape: tuple[int, ...]
    compiled: bool = False

    def __len__(self) -> int:
        return len(self.g)

    def sqnorm(self, scratch: int) -> Tensor:
        """See `Part`. The method is chosen by counting multiply-adds and bytes moved."""
        if math.prod(self.shape[2:]) == 1 and self.g.shape[1] == 1 and self.geometry.groups == 1:
            return self._pointwise().sqnorm(scratch)
        costs = self.costs()
        return self._METHODS[min(costs, key=costs.__getitem__)](self, scratch)

    def costs(self) -> dict[str, float]:
        """Method -> estimated cost a sample, in multiply-adds of a well-fed matrix product."""
        t, taps = math.prod(self.g.shape[3:]), math.prod(self.shape[2:])
        o, c, groups = self.shape[0], self.shape[1], self.geometry.groups
        k = self.g.shape[1]
        # The factors are measured: grouped convolutions reach five sevenths of a plain product's
        # speed, in three dimensions in blocks of 16 channels, and thin products are slow.
        block = 16 if len(self.shape) == 5 else 2
        direct = 1.4 * k * t * taps * max(o, block) * max(c, block)
        moved = self.x[0].numel() + self.g[0].numel()
        costs = {"direct": direct + _COPY * moved + _CALL / self._together()}
        if k == 1 and groups == 1 and len(self.shape) == 5:
            costs["slices"] = 1.05 * t * taps * o * c + 2.4e7
        if k == 1 and groups == 1 and self.geometry.stride == (1,):
            costs["entries"] = _thin(o, c) * t * taps * o * c
        if k == 1 and groups == 1:
            scattered = c <= _FEW and self.geometry.stride[-1] > 1
            unfolding = (2.5 if scattered else 1) * _UNFOLD * t * taps * c
            costs["columns"] = _thin(o, taps * c) * t * taps * c * o + unfolding
            if self.compiled and winograd.fits(self.x[:, 0], self.shape, self.geometry):
                costs["winograd"] = (2.7 * t + 2500.0) * o * c
            # An entry of a Gram matrix is written, summed and multiplied: some 30 multiply-adds.
            costs["gram"] = t * t * (taps * c + o + 30.0) + unfolding
            if all(s == 1 for s in self.geometry.stride):
                pixels = math.prod(self.x.shape[3:])
                sums = 30.0 * sum(self.shape[2:])
                costs["shifted gram"] = pixels * pixels * c + t * t * (o + sums)
        return costs

    def _pointwise(self) -> Outer:
        x = self._padded(self.x[:, 0])
        strided = (slice(None), *(slice(None, None, s) for s in self.geometry.stride))
        x = x.movedim(1, -1)[strided].flatten(1, -2)  # (n, t, c)
        return Outer(x, self.g[:, 0].flatten(2).mT)

    def dense(self, rows: slice) -> Tensor:
        """See `Part`. All samples and groups side by side, as the groups of one convolution."""
        x, g = self.x[rows], self.g[rows]
        n = len(x)
        s, p, d, groups = self.geometry
        stencil = x.new_empty(()).expand(n * self.shape[0], *self.shape[1:])
        _, gradient, _ = torch.ops.aten.convolution_backward(
            _side_by_side(g), _side_by_side(x), stencil, None, s, p, d,
            False, [0] * len(s), n * groups, (False, True, False),
        )  # fmt: skip
        out: Tensor = gradient.unflatten(0, (n, -1))
        return out

    def plus(self, others: Sequence[Part]) -> Part | None:
        """See `Part`. More images a sample, if all images have one size."""
        same = [self, *(o for o in others if isinstance(o, ConvPart) and self._matches(o))]
        if len(same) <= len(others):
            return None
        x, g = torch.cat([o.x for o in same], dim=1), torch.cat([o.g for o in same], dim=1)
        return ConvPart(x, g, self.geometry, self.shape, self.compiled)

    def _matches(self, other: ConvPart) -> bool:
        return (
            self.geometry == other.geometry
            and self.x.shape[2:] == other.x.shape[2:]
            and self.g.shape[2:] == other.g.shape[2:]
        )

    def _direct(self, scratch: int) -> Tensor:
        size = self.x.element_size()
        each = size * (math.prod(self.shape) + self.x[0].numel() + self.g[0].numel())
        size = max(1, min(scratch // each, self._together()))
        pieces = (slice(i, i + size) for i in range(0, len(self), size))
        return torch.cat([squared_norms(self.dense(c)) for c in pieces])

    def _together(self) -> int:
        """Samples a call: as few as make its fixed price small, for larger ones leave the cache.

        At least one a thread, to keep every core busy; one alone is far slower in three dimensions.
        """
        products = self.g[0].numel() * math.prod(self.shape[1:])
        most = min(16, max(4, 256 // self.geometry.groups), _WORK // max(1, products))
        return max(2, torch.get_num_threads(), most)

    def _slices(self, scratch: int) -> Tensor:  # noqa: ARG002
        (s, *plane_s), (p, *plane_p), (d, *plane_d), _ = self.geometry
        o, c, depth, *kernel = self.shape
        extent, positions = self.x.shape[3], self.g.shape[3]
        stencil = self.x.new_empty(()).expand(o, c, *kernel)
        out = []
        for x, g in zip(self.x[:, 0].transpose(1, 2), self.g[:, 0].transpose(1, 2), strict=True):
            squares = []  # x: (slices, c, h, w), g: (positions, o, h, w)
            for offset in (k * d - p for k in range(depth)):
                low = max(0, -(offset // s))
                high = min(positions, (extent - 1 - offset) // s + 1)
                if low < high:
                    _, gradient, _ = torch.ops.aten.convolution_backward(
                        g[low:high], x[low * s + offset : (high - 1) * s + offset + 1 : s], stencil,
                        None, plane_s, plane_p, plane_d, False, [0, 0], 1, (False, True, False),
                    )  # fmt: skip
                    squares.append(squared_norms(gradient[None]))
            out.append(torch.cat(squares).sum(dim=0, keepdim=True))
        return torch.cat(out)

    def _entries(self, scratch: int) -> Tensor:
        _, (padding,), (gap,), _ = self.geometry
        o, c, taps = self.shape
        extent, positions = self.x.shape[3], self.g.shape[3]
        out = []
        for rows in chunks(len(self), self.x.element_size() * o * c, scratch):
            x, g = self.x[rows, 0], self.g[rows, 0]
            total = g.new_zeros(len(g), dtype=wide(g[:0]).dtype)
            for offset in (k * gap - padding for k in range(taps)):
                low, high = max(0, -offset), min(positions, extent - offset)
                if low < high:
                    shifted = x[:, :, low + offset : high + offset]
                    total += squared_norms(g[:, :, low:high] @ shifted.mT)
            out.append(total)
        return torch.cat(out)

    def _columns(self, scratch: int) -> Tensor:
        return self._unfolded(Outer.direct, scratch)

    def _gram(self, scratch: int) -> Tensor:
        return self._unfolded(Outer.gram, scratch)

    def _unfolded(self, method: Callable[[Outer, int], Tensor], scratch: int) -> Tensor:
        t, taps = math.prod(self.g.shape[3:]), math.prod(self.shape[2:])
        each = self.x.element_size() * t * taps * self.shape[1]
        out = []
        for c in chunks(len(self), each, scratch):
            outer = Outer(self._patches(self.x[c, 0]), self.g[c, 0].flatten(2).mT)
            out.append(method(outer, scratch))
        return torch.cat(out)

    def _patches(self, x: Tensor) -> Tensor:
        """(n, c, *space) -> (n, t, c * taps), channels and taps in either order."""
        s, _, d, _ = self.geometry
        spaces, few = len(s), self.shape[1] <= _FEW
        if few:
            x = x.contiguous()
        x = self._padded(x)
        for dim, (k, step, gap) in enumerate(zip(self.shape[2:], s, d, strict=True), start=2):
            x = x.unfold(dim, (k - 1) * gap + 1, step)[..., ::gap]
        # Now (n, c, *positions, *taps): copied so that what lies together stays together.
        positions, taps = range(2, 2 + spaces), range(2 + spaces, 2 + 2 * spaces)
        if few:
            return x.permute(0, 1, *taps, *positions).flatten(2 + spaces).flatten(1, -2).mT
        order = (*taps, 1) if x.stride(1) == 1 else (1, *taps)
        return x.permute(0, *positions, *order).flatten(1 + spaces).flatten(1, -2)

    def _padded(self, x: Tensor) -> Tensor:
        sides = [side for pad in reversed(self.geometry.padding) for side in (pad, pad)]
        return F.pad(x, sides) if any(sides) else x  # padding by nothing would copy

    def _winograd(self, scratch: int) -> Tensor:
        return winograd.sqnorm(self.x[:, 0], self.g[:, 0], scratch)

    def _shifted_gram(self, scratch: int) -> Tensor:
        _, padding, d, _ = self.geometry
        pixels, positions = self.x.shape[3:], self.g.shape[3:]
        each = 3 * self.x.element_size() * max(math.prod(pixels), math.prod(positions)) ** 2
        out = []
        for c in chunks(len(self), each, scratch):
            x = self.x[c, 0].flatten(2)  # (n, c, pixels)
            gram = wide(x.mT @ x).view(len(x), *pixels, *pixels)
            for axis, (k, gap, pad, size) in enumerate(
                zip(self.shape[2:], d, padding, positions, strict=True), start=1
            ):
                offsets = [i * gap - pad for i in range(k)]
                gram = _window_sum(gram, (axis, axis + len(pixels)), offsets, size)
            g = self.g[c, 0].flatten(2)
            out.append(_inner(gram.flatten(1), (g.mT @ g).flatten(1)))
        return torch.cat(out)

    _METHODS = {  # noqa: RUF012
        "direct": _direct,
        "slices": _slices,
        "entries": _entries,
        "columns": _columns,
        "gram": _gram,
        "shifted gram": _shifted_gram,
        "winograd": _winograd,
    }


def _thin(*sides: int) -> float:
    """How much longer a product takes for each multiply-add, if its result has a short side."""
    return 1 + 12 / min(sides)


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


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """(n,): entry by entry products, summed; a rounding error below zero is zero."""
    return (a * b).flatten(1).sum(dim=1).clamp_min_(0)


def _side_by_side(x: Tensor) -> Tensor:
    """(n, k, c, *space) -> (k, n * c, *space): samples become groups of channels.

    Channels that lie last in memory stay there: whole rows of them are copied.
    """
    n, k, c = x.shape[:3]
    if x.dim() >= 5 and x.stride(2) == 1:
        last = x.movedim((0, 2), (-2, -1)).flatten(-2)  # (k, *space, n * c)
        return last.movedim(-1, 1)
    return x.transpose(0, 1).reshape(k, n * c, *x.shape[3:])
