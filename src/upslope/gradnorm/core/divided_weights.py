"""Gradients through Q = W / s in closed form, with a number s that is made of W as well.

Spectral normalisation divides a weight by an estimate of its largest singular value. With D the
gradient of s with respect to W, and G that of a sample's loss with respect to Q,

    dL/dW = (G - <G, Q> D) / s
    |dL/dW|^2 = (|G|^2 - 2 <G, Q> <G, D> + <G, Q>^2 |D|^2) / s^2

so that G keeps the form that it has: what is asked of it are norms and inner products. Called by
`leaf_gradients`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import chunks
from upslope.gradnorm.core.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.core.sums_of_squares import squared_norms, upcast
from upslope.gradnorm.core.weights import leaves

_LEAST = 0.01
"""Share of the terms below which the square of a gradient is not told by their sum, which would
lose two digits and more: it is formed. Of G along D, the direction that division takes out."""


def gradients_through_division(
    node: Any, part: PerSampleGradient
) -> list[tuple[Tensor, PerSampleGradient]] | None:
    """Return the leaf that was divided by a number made of itself alone, and its gradients.

    None where a node of autograd's graph is no such division. part: the gradients of the quotient.
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
    gradient = DividedGradient(part, quotient.contiguous(), slope.contiguous(), number)
    return [(leaf, gradient)]


@dataclass(frozen=True)
class DividedGradient(PerSampleGradient):
    """The gradients of W, from those of Q. quotient: Q, slope: D, divisor: s, a number."""

    part: PerSampleGradient
    quotient: Tensor
    slope: Tensor
    divisor: Tensor

    def __len__(self) -> int:
        return len(self.part)

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        along_q, along_d = self._along_quotient, upcast(self._inner_products(self.slope))
        cross = 2 * along_q * along_d
        terms = self.part.squared_norms(scratch)
        terms = terms.addcmul(along_q.square(), upcast(self.slope).square().sum())
        squares = terms - cross
        # NaN is left as it is.
        for i in (squares < _LEAST * terms).nonzero()[:, 0].tolist():
            values = self.part.materialize(slice(i, i + 1))
            squares[i : i + 1] = squared_norms(self._less_along(values, along_q[i : i + 1]))
        return squares / self.divisor.square()

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        values = self.part.materialize(rows)
        return self._less_along(values, self._along_quotient[rows]) / self.divisor

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.part.cost()

    def _less_along(self, values: Tensor, along_q: Tensor) -> Tensor:
        """Return G - <G, Q> D. values: G, (m, *shape). along_q: <G, Q>, (m,)."""
        dots = along_q.view(-1, *(1,) * self.slope.dim())
        return torch.addcmul(upcast(values), dots, upcast(self.slope), value=-1)

    @functools.cached_property
    def _along_quotient(self) -> Tensor:
        """(n,): the inner products <G, Q>."""
        return upcast(self._inner_products(self.quotient))

    def _inner_products(self, v: Tensor) -> Tensor:
        """(n,): <G, V>, without forming G where its form knows how."""
        dots = self.part.inner_products(v)
        if dots is not None:
            return dots
        pieces = (
            self.part.materialize(rows)
            for rows in chunks(len(self), 2 * v.numel() * v.element_size(), v.nbytes)
        )
        return torch.cat([(upcast(piece) * upcast(v)).flatten(1).sum(dim=1) for piece in pieces])
