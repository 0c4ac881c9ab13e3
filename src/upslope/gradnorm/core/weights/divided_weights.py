"""Gradients through Q = W / s in closed form, with a number s that is made of W as well.

Spectral normalisation divides a weight by an estimate of its largest singular value. With D the
gradient of s with respect to W, and G that of a sample's loss with respect to Q,

    dL/dW = (G - <G, Q> D) / s
    |dL/dW|^2 = (|G|^2 - 2 <G, Q> <G, D> + <G, Q>^2 |D|^2) / s^2

so that G keeps the form that it has: what is asked of it are norms and inner products, of the
estimate u^T W v with D = u v^T, by two vectors. Where G is smaller than what it is made of, it is
formed, a few samples at a time, and the inner products are taken of it. Called by `leaf_gradients`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import chunks
from upslope.gradnorm.core.gradients.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.core.gradients.sums_of_squares import squared_norms, upcast
from upslope.gradnorm.core.weights.weights import leaves

_LEAST = 0.01
"""Share of the terms below which the square of a gradient is not told by their sum, which would
lose two digits and more: it is formed. Of G along D, the direction that division takes out."""

_ROUNDINGS = 8
"""Roundings of a product of two numbers, one of them a quotient, that it may differ by."""


def gradients_through_division(
    node: Any, part: PerSampleGradient, scratch: int
) -> list[tuple[Tensor, PerSampleGradient]] | None:
    """Return the leaf that was divided by a number made of itself alone, and its gradients.

    None where a node of autograd's graph is no such division. part: the gradients of the quotient.
    scratch: bytes that a chunk of them may take.
    """
    if type(node).__name__ != "DivBackward0" or None in (n for n, _ in node.next_functions):
        return None
    leaf, divisor = getattr(node.next_functions[0][0], "variable", None), node._saved_other
    if leaf is None or divisor.dim() > 0 or any(other is not leaf for other in leaves(divisor)):
        return None
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(divisor, leaf, retain_graph=True)
    number = divisor.detach()
    quotient = leaf.detach() / number
    directions = torch.stack([quotient, slope.to(quotient.dtype)])
    return [(leaf, DividedGradient(part, directions, number, scratch))]


@dataclass(frozen=True)
class DividedGradient(PerSampleGradient):
    """The gradients of W, from those of Q.

    directions: Q and D, (2, *shape). divisor: s, a number. scratch: bytes that a chunk may take.
    """

    part: PerSampleGradient
    directions: Tensor
    divisor: Tensor
    scratch: int

    def __len__(self) -> int:
        return len(self.part)

    def squared_norms(self, scratch: int) -> Tensor:  # noqa: ARG002
        """Return the squared norms; see `PerSampleGradient`."""
        along_q, along_d, squares = self._sums
        slope = upcast(self.directions[1])
        terms = torch.addcmul(squares, along_q.square(), slope.square().sum())
        total = torch.addcmul(terms, along_q, along_d, value=-2)
        # NaN is left as it is.
        for i in (total < _LEAST * terms).nonzero()[:, 0].tolist():
            values = self.part.materialize(slice(i, i + 1))
            total[i : i + 1] = squared_norms(self._less_along(values, along_q[i : i + 1]))
        return total / self.divisor.square()

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        values = self.part.materialize(rows)
        return self._less_along(values, self._sums[0][rows]) / self.divisor

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.part.cost()

    def _less_along(self, values: Tensor, along_q: Tensor) -> Tensor:
        """Return G - <G, Q> D. values: G, (m, *shape). along_q: <G, Q>, (m,)."""
        slope = upcast(self.directions[1])
        return torch.addcmul(upcast(values), along_q.view(-1, *(1,) * slope.dim()), slope, value=-1)

    @functools.cached_property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) each: <G, Q>, <G, D> and |G|^2."""
        rows = self.part.by_rows()
        # With few positions a gradient is larger than what it is made of.
        is_small = rows is not None and rows.positions < self.directions[0, 0].numel()
        pieces = None if is_small else self.part.dense_pieces(self.scratch)
        if pieces is None:
            along_q, along_d = self.part.inner_products(self.directions[0]), self._along_slope()
            if along_q is not None and along_d is not None:
                squares = self.part.squared_norms(self.scratch)
                return upcast(along_q), upcast(along_d), squares
            size = 2 * self.directions.numel() * self.directions.element_size()
            slices = chunks(len(self), size, self.scratch)
            pieces = (self.part.materialize(samples) for samples in slices)
        sums = torch.cat([self._sums_of(values) for values in pieces])
        return sums[:, 0], sums[:, 1], sums[:, 2]

    def _along_slope(self) -> Tensor | None:
        """(n,): <G, D>; None if G must be formed first."""
        slope = self.directions[1]
        factors = _factors(slope.flatten(1)) if slope.dim() > 1 else None
        if factors is not None:
            return self.part.rank_one_products(*factors)
        return self.part.inner_products(slope)

    def _sums_of(self, values: Tensor) -> Tensor:
        """Return <G, Q>, <G, D> and |G|^2, (m, 3), of gradients that are formed, (m, *shape)."""
        # In the order in which they lie in memory: any other would be copied.
        order = sorted(range(1, values.dim()), key=values.stride, reverse=True)
        rows = upcast(values.permute(0, *order).flatten(1))
        columns = self.directions.permute(0, *order).flatten(1).to(rows.dtype).mT
        return torch.cat([rows @ columns, squared_norms(rows)[:, None]], dim=1)


def _factors(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return a column and a row whose product a matrix is, but for rounding; None if none are.

    The slope of u^T W v, as a singular value is estimated, is u v^T, however that is spelled.
    """
    place = int(matrix.abs().argmax())
    row, column = divmod(place, matrix.shape[1])
    pivot = matrix[row, column]
    left, right = matrix[:, column] / pivot, matrix[row]
    rest = torch.addr(matrix, left, right, alpha=-1)
    most = _ROUNDINGS * torch.finfo(matrix.dtype).eps * torch.linalg.vector_norm(matrix)
    return (left, right) if bool(torch.linalg.vector_norm(rest) <= most) else None
