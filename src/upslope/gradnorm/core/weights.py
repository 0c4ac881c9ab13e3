"""The tracked parameters, and tensors made of parameters alone.

A network may use a parameter as it is, through a view (one third of a packed projection, a
transpose), or through a function of parameters (weight normalisation, a low-rank update merged
into a base weight). All are "weights": what a use is differentiated by. `sources` says from which
parameters a weight is made, `combined` adds up all uses of one parameter, exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from upslope.gradnorm.core.per_sample_gradients import PerSampleGradient, chunks, squared_norms
from upslope.gradnorm.core.tensor_marks import mark, marks_of

Uses = Sequence[tuple[Tensor, PerSampleGradient]]
"""The uses of one parameter: through which weight, and the gradient of that weight."""


class Weights:
    """The parameters whose gradient is asked for, by name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = dict(parameters)
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._sources: dict[int, tuple[Tensor, tuple[str, ...]]] = {}
        self._laid: dict[str, Tensor] = {}

    def mark_derived(self, tensor: Tensor) -> None:
        """Take in a tensor that was computed from weights alone."""
        # Without a gradient it is a constant, whatever it was made of.
        if tensor.requires_grad and not self.tracks(tensor):
            mark(tensor).made_of = self

    def view(self, tensor: Tensor) -> Tensor:
        """The same, for a kernel's own views of a weight."""
        self.mark_derived(tensor)
        return tensor

    def is_weight(self, tensor: object) -> bool:
        """Whether something is a weight: a tracked parameter, or made of such alone."""
        if not isinstance(tensor, Tensor):
            return False
        return self.tracks(tensor) or marks_of(tensor).made_of is self

    def asked(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Those of an operator's weights whose gradient is asked for."""
        return tuple(t for t in tensors if t is not None and self.is_weight(t))

    def tracks(self, tensor: Tensor) -> bool:
        """Whether the tensor is one of the tracked parameters."""
        return id(tensor) in self._names

    def sources(self, weight: Tensor) -> tuple[str, ...]:
        """The names of the tracked parameters that a weight is made of."""
        name = self._names.get(id(weight))
        if name is not None:
            return (name,)
        if id(weight) not in self._sources:
            reached = {id(leaf) for leaf in leaves(weight)}
            names = tuple(name for i, name in self._names.items() if i in reached)
            self._sources[id(weight)] = (weight, names)  # holds the tensor: its id stays its own
        return self._sources[id(weight)][1]

    def laid(self, weight: Tensor, order: torch.memory_format) -> Tensor:
        """The weight in this order of memory; copies of parameters serve all passes of a call."""
        if weight.is_contiguous(memory_format=order):
            return weight
        name = self._names.get(id(weight))
        if name is None:
            return weight.contiguous(memory_format=order)
        if name not in self._laid:
            self._laid[name] = weight.detach().contiguous(memory_format=order)
        return self._laid[name]

    def isometric(self, weight: Tensor) -> bool:
        """Whether the weight's entries are distinct entries of one parameter.

        Then the gradient of the parameter has the norm of the gradient of the weight.
        """
        if self.tracks(weight):
            return True
        base = weight._base
        return base is not None and self.tracks(base) and not _overlaps(weight)

    def pulled(self, name: str, weight: Tensor, dense: Tensor) -> Tensor:
        """(m, *parameter.shape), from the gradients of a weight made of it, (m, *weight.shape)."""
        parameter = self.parameters[name]
        if weight is parameter:
            return dense
        try:
            (out,) = torch.autograd.grad(
                weight, parameter, dense, retain_graph=True, is_grads_batched=True
            )
        except RuntimeError:  # an operator that cannot be batched: one sample at a time
            rows = [torch.autograd.grad(weight, parameter, d, retain_graph=True)[0] for d in dense]
            out = torch.stack(rows)
        return out


def combined(weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
    """(n,): squared norms of the sum of all uses of the parameter `name`.

    Uses of one form are summed in that form; disjoint slices of the parameter add their squares;
    anything else is formed densely, a few samples at a time.
    """
    tensors = [weight for weight, _ in uses]
    parts = [part for _, part in uses]
    first = tensors[0]
    if weights.isometric(first) and all(t is first for t in tensors):
        total = parts[0].add(parts[1:]) if len(parts) > 1 else parts[0]
        if total is not None:
            return total.squared_norms(scratch)
    # Thirds of a packed projection, say: their squares add, and the parameter's gradient is not
    # formed.
    if all(weights.isometric(t) for t in tensors) and _disjoint(weights.parameters[name], tensors):
        return torch.stack([part.squared_norms(scratch) for part in parts]).sum(dim=0)
    # The same entry used twice, or a function of it: only the formed gradients can be added.
    pieces = dense_sum(weights, name, uses, scratch)
    return torch.cat([squared_norms(rows) for _, rows in pieces])


def dense_sum(
    weights: Weights, name: str, uses: Uses, scratch: int
) -> Iterator[tuple[slice, Tensor]]:
    """(samples, their gradients (m, *parameter.shape)), a few samples at a time."""
    parameter = weights.parameters[name]
    size = max(parameter.numel(), *(weight.numel() for weight, _ in uses))
    for rows in chunks(len(uses[0][1]), 3 * parameter.element_size() * size, scratch):
        total = sum(weights.pulled(name, weight, part.materialize(rows)) for weight, part in uses)
        assert isinstance(total, Tensor)
        yield rows, total


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves of a tensor's autograd graph."""
    stack, seen = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable
        stack.extend(parent for parent, _ in node.next_functions)


def _overlaps(view: Tensor) -> bool:
    """Whether two entries of a view may share memory (expanded, or windows that overlap)."""
    reach = 0
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


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
    each = 2 if view.is_complex() else 1
    reach = sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
    start = int(view.storage_offset())
    return each * start, each * (start + reach) + each - 1


def _places(view: Tensor) -> Tensor:
    """The places in memory of a view's real numbers, (numel,), twice as many for complex ones."""
    each = 2 if view.is_complex() else 1
    place = each * int(view.storage_offset()) + torch.arange(each)
    for size, stride in zip(view.shape, view.stride(), strict=True):
        place = place[..., None] + torch.arange(size) * (each * stride)
    return place.flatten()
