"""Uses of parameters that wait for others: of a parameter with several, or of what is made of some.

A weight that is made of parameters by operators with a rule (`leaf_gradients`) is taken apart as it
comes, so that its uses are those of the parameters themselves: a projection of texts and of a table
of distances is then one sum of outer products, and what is left to form is the table's gradient.
Once all uses of a parameter are there they are handed back, and their operands can go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import (
    Dense,
    OuterProducts,
    PerSampleGradient,
    TransposedGradient,
)
from upslope.gradnorm.core.layouts.layout import SamplesNotSeparable
from upslope.gradnorm.core.uses.dense_sums import Uses
from upslope.gradnorm.core.uses.tape import Kernel
from upslope.gradnorm.core.weights.leaf_gradients import gradients_of_leaves
from upslope.gradnorm.core.weights.weights import Weights


class PendingUses:
    """The uses that a backward pass has come to, of parameters of which others may follow.

    weights: of the tape. uses_of: name -> in how many places a use takes the parameter. scratch:
    bytes that a chunk of gradients may take.
    """

    def __init__(self, weights: Weights, uses_of: Mapping[str, int], scratch: int):
        self._weights, self._uses_of, self._scratch = weights, uses_of, scratch
        self._counts: dict[str, int] = {}
        """Name -> how many of the uses have come."""
        self._uses: dict[str, list[tuple[Tensor, PerSampleGradient]]] = {}
        self._factors: dict[Any, tuple[Tensor, Tensor]] = {}
        """Node and output of autograd's graph -> a factor of products that is made of parameters in
        a way that no rule covers, and the sum of its gradients, (n, *shape)."""
        self._names_made_into_others: set[str] = set()
        """Parameters of which something is made that is not taken apart: their gradients are formed
        at the end, those of all that share a weight by one backward pass."""

    def add(self, weight: Tensor, part: PerSampleGradient, number: int) -> None:
        """Take in the gradients of a weight. number: how many uses they stand for."""
        weights = self._weights
        if weights.isometric(weight):
            self._append(weight, part)
            return
        names = weights.sources(weight)
        tensors = gradients_of_leaves(weight, part, self._scratch)
        # What has no sum in common with its like is better summed before it is taken apart.
        is_sum = all(isinstance(of_tensor, _SUMMABLE) for _, of_tensor in tensors)
        if not tensors or not (is_sum or all(self._uses_of[name] == number for name in names)):
            self._append(weight, part)
            return
        for tensor, of_tensor in tensors:
            if tensor.grad_fn is not None and isinstance(of_tensor, Dense):
                self._add_to_factor(tensor, of_tensor.values)
            elif tensor.grad_fn is not None or weights.tracks(tensor):  # none that is frozen
                self._append(tensor, of_tensor)

    def _append(self, weight: Tensor, part: PerSampleGradient) -> None:
        names = self._weights.sources(weight)
        if not self._weights.isometric(weight):
            self._names_made_into_others.update(names)
        part = part.condense(weight.numel() * weight.element_size(), self._scratch)
        for name in names:
            self._uses.setdefault(name, []).append((weight, part))

    def _add_to_factor(self, factor: Tensor, values: Tensor) -> None:
        """Add gradients of a factor, (n, *shape), which nobody else holds, to those of before."""
        key = factor.grad_fn, factor.output_nr
        if key in self._factors:
            self._factors[key][1].add_(values)
        else:
            self._factors[key] = factor, values
            self._names_made_into_others.update(self._weights.sources(factor))

    def take_complete(self, kernel: Kernel, number: int) -> list[tuple[str, Uses]]:
        """Return the parameters of which a kernel was the last use, and all their uses.

        number: how many uses the kernel stands for.

        Raises:
            SamplesNotSeparable: a use was there already.
        """
        complete: list[tuple[str, Uses]] = []
        for weight in kernel.weights:
            for name in self._weights.sources(weight):
                count = self._counts[name] = self._counts.get(name, 0) + number
                if count > self._uses_of[name]:
                    raise SamplesNotSeparable(f"a backward pass came to a use of `{name}` twice")
                if (
                    count == self._uses_of[name]
                    and name in self._uses
                    and name not in self._names_made_into_others
                ):
                    complete.append((name, self._uses.pop(name)))
        return complete

    def take_rest(self) -> dict[str, Uses]:
        """Return name -> uses of all other parameters, and forget them."""
        for factor, values in self._factors.values():
            self._append(factor, Dense(values))
        rest: dict[str, Uses] = dict(self._uses)
        self._uses.clear()
        self._factors.clear()
        return rest


_SUMMABLE = (Dense, OuterProducts, TransposedGradient)
"""Forms whose sums are of the same form."""
