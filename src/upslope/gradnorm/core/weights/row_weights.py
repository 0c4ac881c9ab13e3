"""Gradients through w_r = a v_r + b, row by row, in closed form (`row_graphs`).

The numbers a and b of a row are functions of its sum and its sum of squares. With U the two unit
vectors (1, ..., 1) / sqrt(k) and v_r less its mean, of one row, the derivative of w_r by v_r is

    J = a I + U (M - a I) U^T

with a matrix M of 2 x 2. So the gradient of v, J^T G with that of w, G, is a multiple of G but for
the plane of U, and

    |J^T G|^2 = a^2 (|G|^2 - |c|^2) + |M^T c|^2        c = U^T G

so that nothing is formed but G, and G only where it has more positions than entries in a row. Gains
take c alone. M are the derivatives of two numbers by two others. Called by `leaf_gradients`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import PerSampleGradient, RowsOfProducts
from upslope.gradnorm.core.gradients.sums_of_squares import as_type_of, squared_norms
from upslope.gradnorm.core.weights.row_graphs import row_graph_of

_LEAST_ACROSS = 0.01
"""Share of a gradient's square that is outside of the planes below which it is formed: as the
difference of two squares it would lose two digits and more."""

_LEAST_ENTRIES = 1 << 18
"""Entries of the gradients of a weight below which autograd, which goes through many small weights
at once, takes no longer. Set by hand."""

_LEAST_SPREAD = 1e-4
"""Share of a row's norm that is not its mean below which a row is held to be constant, which
spans no plane."""


@dataclass(frozen=True)
class RowPlanes:
    """How the rows of a weight, (rows, *rest), were made of those of a leaf."""

    leaf: Tensor
    second: Tensor
    """(rows, *rest): v less its mean, of norm 1; the second vector of U."""
    scale: Tensor
    """(rows,): a."""
    turn: Tensor
    """(rows, 2, 2): M^T, which takes c to the gradient's part in the plane."""
    _planes: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)
    """Order of dimensions in memory -> U, (rows, 2, k)."""

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return G in the order of its memory, (m, rows, k), and c, (rows, 2, m).

        values: G, (m, rows, *rest).
        """
        values = as_type_of(self.second, values)
        # In the order in which they lie in memory: any other would be copied.
        order = tuple(sorted(range(2, values.dim()), key=values.stride, reverse=True))
        rows = values.permute(0, 1, *order).flatten(2)
        if order not in self._planes:
            second = self.second.permute(0, *(dim - 1 for dim in order)).flatten(1)
            first = torch.full_like(second, second.shape[1] ** -0.5)
            self._planes[order] = torch.stack([first, second], dim=1)
        # So it takes a quarter to a half of the time that the transposed product takes.
        return rows, torch.bmm(self._planes[order], rows.permute(1, 2, 0))

    def pull(self, values: Tensor) -> Tensor:
        """Return the gradients of the leaf, (m, *leaf.shape), from those of the weight."""
        _, c = self.parts(values)
        inside = torch.bmm(self.turn, c) - self.scale[:, None, None] * c
        along, spread = (
            part.mT.reshape(len(values), -1, *(1,) * (values.dim() - 2))
            for part in inside.unbind(dim=1)
        )
        out = as_type_of(self.second, values) * self.scale.view(along.shape[1:])
        out = torch.addcmul(out + along * self.second[0].numel() ** -0.5, self.second, spread)
        return out.reshape(len(values), *self.leaf.shape)

    def squares(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return c, (rows, 2, m), and the squared norms of the gradients of the leaf, (m,)."""
        rows, c = self.parts(values)
        whole = torch.linalg.vector_norm(rows, dim=2).square() @ self.scale.square()
        total, is_rounded = self.total(whole, c)
        if bool(is_rounded.any()):
            total[is_rounded] = squared_norms(self.pull(values[is_rounded]))
        return c, total

    def total(self, whole: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared norms of the gradients of the leaf, and which must be formed, (m,).

        whole: a^2 |G|^2, (m,). c: (rows, 2, m).
        """
        across = whole - self.scale.square() @ c.square().sum(dim=1)
        total = across + torch.bmm(self.turn, c).square().sum(dim=(0, 1))
        return total, across < _LEAST_ACROSS * whole


class _Plane(NamedTuple):
    """The planes of rows, (rows, k). second: u_2 of each. x: the places of the rows in them."""

    second: Tensor
    x: Tensor
    has_constant_rows: bool
    """Whether a row spans no plane."""


def _plane_of(rows: Tensor) -> _Plane:
    """Return the planes of rows, (rows, k)."""
    mean = rows.mean(dim=1, keepdim=True)
    spread = rows - mean
    x_1 = mean[:, 0] * math.sqrt(rows.shape[1])
    x_2 = torch.linalg.vector_norm(spread, dim=1)
    is_constant = x_2 <= _LEAST_SPREAD * x_1.abs()
    x = torch.stack([x_1, x_2], dim=1)
    return _Plane(spread.div_(x_2[:, None]), x, bool(is_constant.any()))


def gradients_through_rows(
    weight: Tensor, part: PerSampleGradient, scratch: int
) -> list[tuple[Tensor, PerSampleGradient]] | None:
    """Return the leaves that a weight is made of row by row, and their gradients.

    None where it is made in another way. part: the gradients of the weight. scratch: bytes that a
    chunk of them may take.
    """
    if len(part) * weight.numel() < _LEAST_ENTRIES:
        return None
    planes: list[_Plane] = []

    def places(leaf: Tensor) -> Tensor:
        planes.append(_plane_of(leaf.reshape(len(weight), -1)))
        return planes[0].x

    graph = row_graph_of(weight, places)
    if graph is None or graph.leaf.dtype != weight.dtype:
        return None
    (plane,) = planes
    if plane.has_constant_rows:
        return None
    scale = graph.y[0, :, 1].detach() / plane.x[:, 1]
    slopes, *slopes_of_gains = graph.slopes()
    row_planes = RowPlanes(graph.leaf, plane.second.view(weight.shape), scale, slopes.mT)
    sums = _Sums(row_planes, part, scratch)
    gradients: list[tuple[Tensor, PerSampleGradient]] = [(graph.leaf, RowGradient(sums))]
    for (gain, _), slope in zip(graph.gains, slopes_of_gains, strict=True):
        gradients.append((gain, GainGradient(sums, slope, gain.shape)))
    return gradients


@dataclass(frozen=True)
class _Sums:
    """Sums over the gradients of a weight, which are formed once for all of its leaves."""

    planes: RowPlanes
    part: PerSampleGradient
    scratch: int

    @functools.cached_property
    def both(self) -> tuple[Tensor, Tensor]:
        """(rows, 2, n): c. (n,): the squared norms of the gradients of the leaf."""
        rows = self.part.by_rows()
        # With few positions a gradient is larger than what it is made of.
        if rows is not None and rows.positions < self.planes.second[0].numel():
            return self._by_rows(rows)
        every_c, every_square = zip(
            *map(
                self.planes.squares,
                self.part.pieces(
                    4 * self.planes.second.numel() * self.planes.second.element_size(), self.scratch
                ),
            ),
            strict=True,
        )
        return torch.cat(every_c, dim=2), torch.cat(every_square)

    def _by_rows(self, rows: RowsOfProducts) -> tuple[Tensor, Tensor]:
        """Return what `both` does, with no gradient formed but where rounding errors ask for it."""
        second = self.planes.second
        first = torch.full_like(second[:1], second[0].numel() ** -0.5)
        c = torch.stack([rows.products_of_rows(v).mT for v in (first, second)], dim=1)
        whole = rows.times_rows(self.planes.scale).squared_norms(self.scratch)
        total, is_rounded = self.planes.total(whole, c)
        for i in is_rounded.nonzero()[:, 0].tolist():
            values = self.part.materialize(slice(i, i + 1))
            total[i : i + 1] = squared_norms(self.planes.pull(values))
        return c, total


@dataclass(frozen=True)
class RowGradient(PerSampleGradient):
    """The gradients of the leaf, from those of the weight."""

    sums: _Sums

    def __len__(self) -> int:
        return len(self.sums.part)

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`."""
        return self.sums.both[1]

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.sums.planes.pull(self.sums.part.materialize(rows))

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.sums.part.cost()


@dataclass(frozen=True)
class GainGradient(PerSampleGradient):
    """The gradients of a number for each row. slope: (rows, 2), the derivatives of w by it."""

    sums: _Sums
    slope: Tensor
    shape: torch.Size

    def __len__(self) -> int:
        return len(self.sums.part)

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`."""
        return squared_norms(self.materialize(slice(None)))

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        values = (self.sums.both[0][..., rows] * self.slope[..., None]).sum(dim=1).mT
        return values.reshape(-1, *self.shape)
