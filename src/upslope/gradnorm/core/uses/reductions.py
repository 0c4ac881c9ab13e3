"""Reductions of per-sample gradients: what is wanted of each parameter's, a row for each sample."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.sums_of_squares import squared_norms
from upslope.gradnorm.core.gradients.tied_gradients import norms_of_sum
from upslope.gradnorm.core.uses.dense_sums import Uses, dense_sum
from upslope.gradnorm.core.weights.weights import Weights


class Reduction(Protocol):
    """What is wanted of the gradient of one parameter: one row per sample."""

    @property
    def degree(self) -> int:
        """With which power of the loss the first number of a row grows: 2 for squares.

        The others of a row grow with the loss itself.
        """
        ...

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """(n, ...), from all uses of the parameter `name`."""
        ...

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:
        """(m, ...), from the gradients themselves, (m, *parameter.shape)."""
        ...

    def sizes(self, name: str, gradients: Tensor) -> Tensor:
        """(m,): what the rounding of each row is proportional to, the size of what it sums."""
        ...


class SquaredNorms:
    """Squared Frobenius norms, (n,)."""

    degree = 2

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Reduce the sum of all uses of a parameter; see `Reduction`."""
        return norms_of_uses(weights, name, uses, scratch)

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:  # noqa: ARG002
        """Reduce gradients that are formed already; see `Reduction`."""
        return squared_norms(gradients)

    def sizes(self, name: str, gradients: Tensor) -> Tensor:
        """Return the squares themselves, which no rounding cancels."""
        return self.of_dense(name, gradients)


class TotalSquaredNorms(SquaredNorms):
    """Squared Frobenius norms of the whole gradient, (n,): of no parameter by itself.

    `ReducingListener` adds them up on its way. A pass that is proven does so too, to the same bits,
    and has the squares of each parameter beside, which are held against autograd.
    """

    of_all = ""
    """The name under which the sum stands, in place of all parameters' names."""

    def total(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum, (n,) float64. rows: name -> (n,), one or more."""
        if self.of_all in rows:
            return dict(rows)
        # In double: small tensors' squares would be lost beside those of large ones.
        squares = torch.stack(list(rows.values())).sum(dim=0, dtype=torch.float64)
        return {self.of_all: squares}


def norms_of_uses(weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
    """(n,): squared norms of the sum of all uses of the parameter `name`.

    Uses of one form are summed in that form; disjoint slices of the parameter add their squares;
    anything else is formed densely, a few samples at a time.
    """
    # Most parameters are used once, as they are.
    first, part = uses[0]
    if len(uses) == 1 and weights.isometric(first):
        return part.squared_norms(scratch)
    tensors = [weight for weight, _ in uses]
    parts = [part for _, part in uses]
    if weights.isometric(first) and all(t is first for t in tensors):
        norms = norms_of_sum(parts, scratch)
        if norms is not None:
            return norms
    # Thirds of a packed projection, say: their squares add, and the parameter's gradient is not
    # formed.
    if all(weights.isometric(t) for t in tensors) and _disjoint(weights.parameters[name], tensors):
        return torch.stack([part.squared_norms(scratch) for part in parts]).sum(dim=0)
    # The same entry used twice, or a function of it: only the formed gradients can be added.
    return torch.cat([squared_norms(rows) for _, rows in dense_sum(weights, name, uses, scratch)])


def _disjoint(parameter: Tensor, views: Sequence[Tensor]) -> bool:
    """Whether views of one parameter, none of which overlaps itself, share no entry."""
    if any(view is parameter for view in views):
        return len(views) == 1
    spans = sorted(_span(view) for view in views)
    if all(end < start for (_, end), (start, _) in itertools.pairwise(spans)):
        return True
    places = torch.cat([_places(view) for view in views]).sort().values
    return bool(places.diff().all())


def _span(view: Tensor) -> tuple[int, int]:
    """The first and the last place in memory, in real numbers: a complex entry takes two."""
    numbers_per_entry = 2 if view.is_complex() else 1
    reach = sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
    start = int(view.storage_offset())
    return numbers_per_entry * start, numbers_per_entry * (start + reach) + numbers_per_entry - 1


def _places(view: Tensor) -> Tensor:
    """The places in memory of a view's real numbers, (numel,), twice as many for complex ones."""
    numbers_per_entry = 2 if view.is_complex() else 1
    place = numbers_per_entry * int(view.storage_offset()) + torch.arange(numbers_per_entry)
    for size, stride in zip(view.shape, view.stride(), strict=True):
        place = place[..., None] + torch.arange(size) * (numbers_per_entry * stride)
    return place.flatten()
