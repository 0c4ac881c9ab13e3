"""Gradients through weight normalisation in closed form: w = g v / |v|, with a norm for each row.

With u = v / |v|, and G the gradient of w, of one row:

    dL/dg = <G, u>        dL/dv = g / |v| (G - <G, u> u)

Autograd's operator can only be differentiated for one sample after the other: it has no rule for
`vmap`. Here all samples go at once, and for norms nothing is formed but G: the square of what it
has across u is its own less that along u. A row is the entries along all dimensions but one. Called
by `weights` and `leaf_gradients`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.core.gradients.sums_of_squares import (
    as_type_of,
    frobenius_norms,
    squared_norms,
    upcast,
)

WEIGHT_NORM_NODE = "WeightNormInterfaceBackward0"
"""Type of the node of `torch._weight_norm` in autograd's graph."""

_LEAST_ACROSS = 0.01
"""Share of a gradient's square that is across u below which that part is formed: as the difference
of two squares it would lose two digits and more. Only rows of one entry, and gradients along the
weight itself, have so little."""


@dataclass(frozen=True)
class WeightNorm:
    """How a weight was made of two leaves."""

    direction: Tensor
    """The leaf v, of the weight's shape."""
    length: Tensor
    """The leaf g, of size 1 along the dimensions of a row."""
    u: Tensor
    """v / |v|."""
    scale: Tensor
    """g / |v|, of the shape of g."""

    dims: tuple[int, ...]
    """The dimensions of a row, in the gradients of several samples."""
    _u_by_strides: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)
    """u by strides."""

    def dots_and_squares(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of g, (m, *g.shape), and the squared norms of those of v, (m,).

        values: the gradients of the weight, (m, *shape).
        """
        u = upcast(self._in_order_of(values))
        values, squared_scale = as_type_of(u, values), upcast(self.scale).flatten().square()
        products = values * u
        dots = products.sum(dim=self.dims, keepdim=True)
        # By Pythagoras, row by row. Sums along dimensions that lie apart are slow: here is one.
        torch.mul(values, upcast(self.scale), out=products)
        lengths = frobenius_norms(products).square_()
        across = lengths - dots.square().flatten(1) @ squared_scale
        mask = across < _LEAST_ACROSS * lengths
        if bool(mask.any()):
            rows = torch.addcmul(values[mask], u, dots[mask], value=-1)
            across[mask] = rows.square().sum(dim=self.dims).flatten(1) @ squared_scale
        return dots, across

    def pull(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of v and of g, (m, *shape) each, from those of the weight."""
        u = self._in_order_of(values)
        dots = (values * u).sum(dim=self.dims, keepdim=True)
        across = torch.addcmul(values.to(u.dtype), u, dots, value=-1)
        return across * self.scale, dots

    def _in_order_of(self, values: Tensor) -> Tensor:
        """Return u in the memory order of gradients: operators would be slow with both."""
        if values.stride()[1:] == self.u.stride():
            return self.u
        like = torch.empty_like(values[0], dtype=self.u.dtype)
        if like.stride() not in self._u_by_strides:  # asked for each piece of them
            self._u_by_strides[like.stride()] = like.copy_(self.u)
        return self._u_by_strides[like.stride()]


def weight_norm_of(node: Any) -> WeightNorm | None:
    """Return how `torch._weight_norm` has made a weight of two leaves; None if it has not.

    node: the weight's in autograd's graph.
    """
    if type(node).__name__ != WEIGHT_NORM_NODE:
        return None
    v, g = (getattr(parent, "variable", None) for parent, _ in node.next_functions)
    if v is None or g is None:  # made of others in turn, or constant
        return None
    norms, dim = node._saved_result1.detach(), node._saved_dim % v.dim()
    dims = tuple(1 + other for other in range(v.dim()) if other != dim)
    return WeightNorm(v, g, v.detach() / norms, g.detach() / norms, dims)


def gradients_through_weight_norm(
    node: Any, part: PerSampleGradient, scratch: int
) -> list[tuple[Tensor, PerSampleGradient]] | None:
    """Return the two leaves that `torch._weight_norm` has made a weight of, and their gradients.

    None if it has not. node: as of `weight_norm_of`. part: the gradients of the weight. scratch:
    bytes that a chunk of them may take.
    """
    norm = weight_norm_of(node)
    if norm is None:
        return None
    sums = _Sums(norm, part, scratch)
    return [(norm.direction, DirectionGradient(sums)), (norm.length, LengthGradient(sums))]


@dataclass(frozen=True)
class _Sums:
    """Sums over the gradients of a weight, which are formed once for both of its leaves."""

    norm: WeightNorm
    part: PerSampleGradient
    scratch: int

    @functools.cached_property
    def both(self) -> tuple[Tensor, Tensor]:
        """(n, *shape): the gradients of g. (n,): the squared norms of those of v."""
        every_dots, every_squares = [], []
        bytes_each = 3 * self.norm.u.numel() * self.norm.u.element_size()
        for values in self.part.pieces(bytes_each, self.scratch):
            dots, squares = self.norm.dots_and_squares(values)
            every_dots.append(dots)
            every_squares.append(squares)
        return torch.cat(every_dots), torch.cat(every_squares)


@dataclass(frozen=True)
class DirectionGradient(PerSampleGradient):
    """The gradients of v, from those of the weight."""

    sums: _Sums

    def __len__(self) -> int:
        return len(self.sums.part)

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`."""
        return self.sums.both[1]

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.sums.norm.pull(self.sums.part.materialize(rows))[0]

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.sums.part.cost()


@dataclass(frozen=True)
class LengthGradient(PerSampleGradient):
    """The gradients of g, from those of the weight."""

    sums: _Sums

    def __len__(self) -> int:
        return len(self.sums.part)

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`."""
        return squared_norms(self.sums.both[0])

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.sums.both[0][rows]
