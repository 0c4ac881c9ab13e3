"""The tracked parameters, and tensors made of parameters alone.

A network may use a parameter as it is, through a view (one third of a packed projection, a
transpose), or through a function of parameters (weight normalisation, a low-rank update merged
into a base weight). All are "weights": what a use is differentiated by. `Weights.sources` says from
which parameters a weight is made, `gradients_of_parameters` brings its gradients back to these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upslope.gradnorm.core.tensor_marks import mark, marks_of
from upslope.gradnorm.core.weights.derived_gradients import DerivedGradients

_CUSTOM: type[Any] = torch.autograd.function.BackwardCFunction


class Weights:
    """The parameters whose gradient is asked for, by name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = dict(parameters)
        self._names = {id(p): name for name, p in self.parameters.items()}
        self.tracked_ids = self._names.keys()
        """The `id`s of the tracked parameters."""
        self.key = object()
        """What marks tensors that are made of these alone. These themselves hold such tensors, and
        would not go with the call but wait for the garbage collector."""
        self._sources: dict[int, tuple[Tensor, tuple[str, ...]]] = {}
        self._copies_in_format: dict[str, Tensor] = {}

    def mark_derived(self, tensor: Tensor) -> None:
        """Take in a tensor that was computed from weights alone."""
        # Without a gradient it is a constant, whatever it was made of.
        if tensor.requires_grad and not self.tracks(tensor):
            mark(tensor).made_of = self.key

    def view(self, tensor: Tensor) -> Tensor:
        """Return a kernel's own view of a weight, taken in as a weight (`mark_derived`)."""
        self.mark_derived(tensor)
        return tensor

    def apart(self, tensor: Any, other: Tensor | None) -> Any:
        """Return a weight of a use; as a view if it is another weight of the same use as well.

        A scale that is the shift too has two gradients, which are told apart by their tensors.
        """
        is_both = tensor is not None and tensor is other and self.is_weight(tensor)
        return self.view(tensor.view_as(tensor)) if is_both else tensor

    def is_weight(self, tensor: object) -> bool:
        """Whether something is a weight: a tracked parameter, or made of such alone."""
        if id(tensor) in self._names:
            return True
        return isinstance(tensor, Tensor) and marks_of(tensor).made_of is self.key

    def are_in_their_places(self, input: Tensor, *weights: Tensor | None) -> bool:
        """Whether an operator's input is no weight, and none of its weights depends on samples.

        A shift that a network makes for each sample has a gradient, of which kernels know nothing.
        """
        if self.is_weight(input):
            return False
        for tensor in weights:
            if tensor is not None and tensor.requires_grad and not self.is_weight(tensor):
                return False
        return True

    def select_weights(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Return those of an operator's tensors whose gradient is asked for."""
        names = self._names
        return tuple(
            [t for t in tensors if t is not None and (id(t) in names or self.is_weight(t))]
        )

    def tracks(self, tensor: Tensor) -> bool:
        """Whether the tensor is one of the tracked parameters."""
        return id(tensor) in self._names

    def sources(self, weight: Tensor) -> tuple[str, ...]:
        """Return the names of the tracked parameters that a weight is made of."""
        name = self._names.get(id(weight))
        if name is not None:
            return (name,)
        if id(weight) not in self._sources:
            leaf_ids = {id(leaf) for leaf in leaves(weight)}
            names = tuple(name for i, name in self._names.items() if i in leaf_ids)
            self._sources[id(weight)] = (weight, names)  # holds the tensor: its id stays its own
        return self._sources[id(weight)][1]

    def in_memory_format(self, weight: Tensor, order: torch.memory_format) -> Tensor:
        """Return a weight in a memory format. Copies of parameters serve all passes of a call."""
        if weight.is_contiguous(memory_format=order):
            return weight
        name = self._names.get(id(weight))
        if name is None:
            return weight.contiguous(memory_format=order)
        if name not in self._copies_in_format:
            self._copies_in_format[name] = weight.detach().contiguous(memory_format=order)
        return self._copies_in_format[name]

    def drop_copies(self) -> None:
        """Let go of copies in other memory formats, which the next use makes again."""
        self._copies_in_format.clear()

    def isometric(self, weight: Tensor) -> bool:
        """Whether the weight's entries are distinct entries of one parameter.

        Then the gradient of the parameter has the norm of the gradient of the weight.
        """
        if self.tracks(weight):
            return True
        base = weight._base
        return base is not None and self.tracks(base) and not _overlaps(weight)

    def gradients_of_parameters(
        self, parameters: Mapping[str, Tensor], weight_gradients: Sequence[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the gradients of parameters, (m, *shape), from those of what is made of them.

        parameters: name -> parameter, those that are asked for.
        weight_gradients: weights, and the gradients of each for m samples, (m, *weight.shape).
        A parameter that none is made of is left out.
        """
        on_their_way = DerivedGradients()
        for weight, gradients in weight_gradients:
            on_their_way.add(weight, gradients)
        return on_their_way.of_parameters(parameters)


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves of a tensor's autograd graph."""
    for node in _nodes(tensor):
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable


def has_custom_function(tensor: Tensor) -> bool:
    """Whether a `torch.autograd.Function` that is not Upslope's is in a tensor's autograd graph.

    What its backward pass does, no operator shows. Asked of each batch: it must be fast.
    """
    return any(
        isinstance(node, _CUSTOM) and not type(node)._forward_cls.__module__.startswith("upslope.")
        for node in _nodes(tensor)
    )


def _nodes(tensor: Tensor) -> list[Any]:
    """Return the nodes of a tensor's autograd graph, each once."""
    if tensor.grad_fn is None:
        return []
    nodes: list[Any] = [tensor.grad_fn]
    nodes_met = {None, tensor.grad_fn}
    for node in nodes:  # which grows on the way
        for parent, _ in node.next_functions:
            if parent not in nodes_met:
                nodes_met.add(parent)
                nodes.append(parent)
    return nodes


def _overlaps(view: Tensor) -> bool:
    """Whether two entries of a view may share memory (expanded, or windows that overlap)."""
    reach = 0
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False
