"""The per-sample gradient of a convolution's weight, and three ways to its norm.

For output position l and offset k of the kernel, dL/dW[:, :, k] = sum_l g_l x_(l*s + k*d)^T.

- direct: the weight gradient itself, for a few samples at a time. Samples laid side by side as
  groups of one grouped convolution run at the speed of the ordinary weight gradient.
- Gram: <x_l, x_l'> summed over the kernel's offsets, times <g_l, g_l'> (the ghost norm): for t
  positions, t^2 (c k + o) multiply-adds from unfolded patches.
- shifted Gram, where the stride is 1: the Gram matrix of patches is a sum of shifted entries of
  the Gram matrix of single pixels, sum_k P[l + k, l' + k] with P = X X^T, so that the unfolding
  and the factor k go: about t^2 (c + o) multiply-adds and two short window sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.parts import Part, _wide, chunks, squared_norms


class Geometry(NamedTuple):
    """Stride, zero padding and dilation in each dimension; groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class ConvPart:
    """x: (n, k, c, *space), g: (n, k, o, *positions): k images a sample. shape: the weight's."""

    x: Tensor
    g: Tensor
    geometry: Geometry
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.g)

    def sqnorm(self, scratch: int) -> Tensor:
        """See `Part`. The method is chosen by counting multiply-adds and bytes moved."""
        costs = self.costs()
        return self._METHODS[min(costs, key=costs.__getitem__)](self, scratch)

    def costs(self) -> dict[str, float]:
        """Method -> estimated cost a sample, in multiply-adds of a well-fed matrix product."""
        t, taps = math.prod(self.g.shape[3:]), math.prod(self.shape[2:])
        o, c, groups = self.shape[0], self.shape[1], self.geometry.groups
        k = self.g.shape[1]
        costs = {"direct": 1.0 * k * t * taps * o * c}
        if k == 1 and groups == 1:
            # An entry of a Gram matrix is written, summed and multiplied: some 30 multiply-adds.
            costs["gram"] = t * t * (taps * c + o + 30.0) + 8.0 * t * taps * c
            if self._slides():
                p = math.prod(self._padded())
                costs["shifted gram"] = p * p * (c + 30.0 * len(self.shape[2:])) + t * t * (o + 60.0)
        return costs

    def dense(self, rows: slice) -> Tensor:
        """See `Part`. All samples and groups side by side, as the groups of one convolution."""
        x, g = self.x[rows], self.g[rows]
        n, k = x.shape[:2]
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
        return ConvPart(x, g, self.geometry, self.shape)

    def _matches(self, other: ConvPart) -> bool:
        return (
            self.geometry == other.geometry
            and self.x.shape[2:] == other.x.shape[2:]
            and self.g.shape[2:] == other.g.shape[2:]
        )

    def _direct(self, scratch: int) -> Tensor:
        size = self.x.element_size()
        each = size * (math.prod(self.shape) + self.x[0].numel() + self.g[0].numel())
        # One sample a thread keeps every core busy, and more gain nothing.
        together = min(scratch, each * torch.get_num_threads())
        return torch.cat([squared_norms(self.dense(c)) for c in chunks(len(self), each, together)])

    def _gram(self, scratch: int) -> Tensor:
        t, taps = math.prod(self.g.shape[3:]), math.prod(self.shape[2:])
        each = self.x.element_size() * t * (taps * self.shape[1] + 2 * t)
        out = []
        for c in chunks(len(self), each, scratch):
            patches = self._patches(self.x[c, 0])  # (n, t, c * taps)
            g = self.g[c, 0].flatten(2)  # (n, o, t)
            out.append(_inner(_wide(patches @ patches.mT), g.mT @ g))
        return torch.cat(out)

    def _patches(self, x: Tensor) -> Tensor:
        s, p, d, _ = self.geometry
        x = F.pad(x, [side for pad in reversed(p) for side in (pad, pad)])
        for dim, (k, step, gap) in enumerate(zip(self.shape[2:], s, d, strict=True), start=2):
            x = x.unfold(dim, (k - 1) * gap + 1, step)[..., ::gap]
        spaces = len(s)
        order = (0, *range(2, 2 + spaces), 1, *range(2 + spaces, 2 + 2 * spaces))
        return x.permute(order).flatten(1 + spaces).flatten(1, spaces)

    def _slides(self) -> bool:
        return all(s == 1 for s in self.geometry.stride)

    def _padded(self) -> list[int]:
        sizes = zip(self.x.shape[3:], self.geometry.padding, strict=True)
        return [size + 2 * pad for size, pad in sizes]

    def _shifted_gram(self, scratch: int) -> Tensor:
        _, p, d, _ = self.geometry
        extent, positions = self._padded(), self.g.shape[3:]
        each = 3 * self.x.element_size() * math.prod(extent) ** 2
        sides = [side for pad in reversed(p) for side in (pad, pad)]
        out = []
        for c in chunks(len(self), each, scratch):
            x = F.pad(self.x[c, 0], sides).flatten(2)  # (n, c, pixels)
            gram = _wide(x.mT @ x).unflatten(2, extent).unflatten(1, extent)
            for axis, (k, gap, size) in enumerate(
                zip(self.shape[2:], d, positions, strict=True), start=1
            ):
                gram = _window_sum(gram, axis, axis + len(extent), k, gap, size)
            g = self.g[c, 0].flatten(2)
            out.append(_inner(gram.flatten(1), (g.mT @ g).flatten(1)))
        return torch.cat(out)

    _METHODS = {"direct": _direct, "gram": _gram, "shifted gram": _shifted_gram}  # noqa: RUF012


def _window_sum(gram: Tensor, row: int, column: int, k: int, gap: int, size: int) -> Tensor:
    """Sum over the k offsets of one axis, applied to rows and columns alike."""
    shifted = [
        gram.narrow(row, i * gap, size).narrow(column, i * gap, size) for i in range(k)
    ]
    if k == 1:
        return shifted[0]
    total = shifted[0] + shifted[1]
    for other in shifted[2:]:
        total += other
    return total


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """(n,): entry by entry products, summed; a rounding error below zero is zero."""
    return (a * b).flatten(1).sum(dim=1).clamp_min_(0)


def _side_by_side(x: Tensor) -> Tensor:
    """(n, k, c, *space) -> (k, n * c, *space): samples become groups of channels."""
    return x.transpose(0, 1).flatten(1, 2)
