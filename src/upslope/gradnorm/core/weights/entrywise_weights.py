"""Gradients through weights of which each entry is made of the same entry of some leaves.

Masks (pruning), rounding with the gradient of what was not rounded, means and deviations with noise
(Bayes by backprop) are of this kind: dL/dv = G F, entry by entry, with one F for all samples
(`factored_gradients`). So F is computed once, and of one position nothing is formed:

    |G F|^2 = sum_ij g_i^2 F_ij^2 x_j^2        G = g x^T

Called by `leaf_gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts, PerSampleGradient
from upslope.gradnorm.core.gradients.sums_of_squares import as_type_of, squared_norms, upcast
from upslope.gradnorm.core.weights.factored_gradients import (
    FactoredGradient,
    pull_back_entries,
    shape_of,
)

_MOST_NODES = 64
"""Nodes that are gone through at most: where paths part and join again their number doubles."""


def gradients_through_entries(
    weight: Tensor, part: PerSampleGradient
) -> list[tuple[Tensor, PerSampleGradient]] | None:
    """Return the leaves that a weight is made of entry by entry, and their gradients.

    None where it is made in another way. part: the gradients of the weight.
    """
    shape = tuple(weight.shape)
    one = torch.ones((1,) * (1 + weight.dim()), dtype=weight.dtype, device=weight.device)
    factors: dict[int, tuple[Tensor, Tensor]] = {}
    stack: list[tuple[Any, int, FactoredGradient]] = [
        (weight.grad_fn, weight.output_nr, FactoredGradient(one))
    ]
    for _ in range(_MOST_NODES):
        node, output, gradients = stack.pop()
        if shape_of(node, output) != shape:
            return None
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            _, so_far = factors.get(id(leaf), (leaf, None))
            factor = gradients.dense(shape)[0]
            factors[id(leaf)] = leaf, factor if so_far is None else so_far + factor
        else:
            of_parents = pull_back_entries(node, output, gradients)
            if of_parents is None:
                return None
            for (parent, place), of_parent in zip(node.next_functions, of_parents, strict=True):
                if parent is not None and of_parent is not None:
                    stack.append((parent, place, of_parent))
        if not stack:
            return [(leaf, EntrywiseGradient(part, factor)) for leaf, factor in factors.values()]
    return None


@dataclass(frozen=True)
class EntrywiseGradient(PerSampleGradient):
    """The gradients of a leaf, G F. part: G. factor: F, of the leaf's shape."""

    part: PerSampleGradient
    factor: Tensor

    def __len__(self) -> int:
        return len(self.part)

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        if isinstance(self.part, OuterProducts) and self.part.x.shape[1] == 1:
            return self._of_one_position(upcast(self.part.x[:, 0]), upcast(self.part.g[:, 0]))
        bytes_each = 2 * self.factor.numel() * self.factor.element_size()
        pieces = self.part.pieces(bytes_each, scratch)
        return torch.cat([squared_norms(values * self.factor) for values in pieces])

    def _of_one_position(self, x: Tensor, g: Tensor) -> Tensor:
        """(n,): the squared norms of the products themselves. x: (n, i), g: (n, o)."""
        # Squares of small gradients would be lost before they meet those of large inputs.
        (x, size_of_x), (g, size_of_g) = _unit(x), _unit(g)
        squares = g.square() @ as_type_of(g, self.factor).square()
        return (squares * x.square()).sum(dim=1) * (size_of_x * size_of_g).square()

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        return self.part.materialize(rows) * self.factor

    def inner_products(self, v: Tensor) -> Tensor | None:
        """Return the inner products with a direction; see `PerSampleGradient`."""
        return self.part.inner_products(v * self.factor)

    def add(self, others: Sequence[PerSampleGradient]) -> PerSampleGradient | None:
        """Return the sum with other gradients; see `PerSampleGradient`."""
        same = [o for o in others if isinstance(o, EntrywiseGradient) and o.factor is self.factor]
        total = self.part.add([o.part for o in same]) if len(same) == len(others) else None
        return None if total is None else EntrywiseGradient(total, self.factor)

    def cost(self) -> tuple[str, float]:
        """Return the method and its cost; see `PerSampleGradient`."""
        return self.part.cost()


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows, (n, k), divided by their largest entries, and these, (n,)."""
    size = rows.abs().amax(dim=1, keepdim=True)
    return torch.where(size > 0, rows / size, rows), size[:, 0]
