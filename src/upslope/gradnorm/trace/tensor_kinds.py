"""Kinds of tensors in one pass of a model: samples, weights, placeholders, constants.

Asked by `intercept` of every tensor that an operator takes: it must be fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from upslope.gradnorm.core.program import Program, outline_of
from upslope.gradnorm.core.tape import Tape
from upslope.gradnorm.core.tensor_marks import NO_MARKS, mark, marks_of
from upslope.gradnorm.core.weights import leaves
from upslope.gradnorm.trace.operators import JOINING
from upslope.gradnorm.trace.sequence_order import SequenceOrders

_session = itertools.count()

_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
"""Types of arguments that hold no tensor."""

_PLACES = frozenset({bool, int, type(None), type(...)})
"""Types of what an index without tensors is made of."""

_SEQUENCES = frozenset({tuple, list, torch.Size})


def _is_plain_index(index: Any) -> bool:
    """Whether an index is made of numbers of Python's alone."""
    items = index if isinstance(index, tuple) else (index,)
    return all(
        type(part) in _PLACES
        for item in items
        for part in ((item.start, item.stop, item.step) if isinstance(item, slice) else (item,))
    )


def _is_under_vmap() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


class TensorKinds:
    """Tells the kinds of the tensors of one pass.

    tape, program, orders: of the pass; they are told of tensors that depend on the samples and
    that no operator under the interceptor put out.
    """

    def __init__(self, tape: Tape, program: Program, orders: SequenceOrders):
        self.tape, self.program, self._orders = tape, program, orders
        self.session = next(_session)
        """What marks the samples of this pass, and of no other."""

    def as_sample(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the engine's own, marked as one that depends on the samples."""
        mark(tensor).samples_in = self.session
        return tensor

    def outline(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, moves: bool
    ) -> tuple[Any, ...] | None:
        """Return the outline of an operator on samples (`program`), if it goes the short way.

        None if it takes no sample, or anything but dense samples, constants and plain numbers.
        Asked of every operator: it must be fast.

        name, args, kwargs: the operator and what it got. moves: whether it moves entries, and may
        take one tensor alone, or samples in a list that it joins.
        """
        joins = moves and name in JOINING
        outline: list[Any] = [name]
        session, weights, count = self.session, self.tape.weights, 0
        for value in (*args, *kwargs.values()) if kwargs else args:
            kind = type(value)
            if kind is Tensor:
                marks = marks_of(value)
                if marks.samples_in == session:
                    count += 1
                    if marks.made_of is weights or marks.placeholder_of is not None:
                        return None
                    if marks.route is not None:
                        return None
                elif moves or marks is not NO_MARKS or value.grad_fn is not None:
                    return None
                if value.layout is not torch.strided:
                    return None
                outline.append(value.shape)
            elif kind in _PLAIN:
                outline.append(outline_of(value))
            elif joins and kind in _SEQUENCES and all(map(self._is_plain_sample, value)):
                count += 1
                outline.append(tuple(map(outline_of, value)))
            elif kind in _SEQUENCES and all(type(item) is int for item in value):
                outline.append(tuple(value))
            elif moves and _is_plain_index(value):
                outline.append(repr(value))
            else:
                return None
        if not count or (moves and (count > 1 or _is_under_vmap())):
            return None
        return tuple(outline)

    def _is_plain_sample(self, value: Any) -> bool:
        """Whether something is dense samples with dimensions, as they come to be joined."""
        if type(value) is not Tensor or value.layout is not torch.strided or not value.shape:
            return False
        marks = marks_of(value)
        return (
            marks.samples_in == self.session
            and marks.made_of is not self.tape.weights
            and marks.placeholder_of is None
            and marks.route is None
        )

    def is_sample(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the samples."""
        return self.of(tensor) == "sample"

    def of_all(self, tensors: Iterable[Tensor]) -> set[str]:
        """Return the kinds of several tensors. Asked of every operator: samples are told first."""
        kinds, weights, session = set(), self.tape.weights, self.session
        for tensor in tensors:
            marks = marks_of(tensor)
            is_sample = marks.samples_in == session and marks.made_of is not weights
            if weights.tracks(tensor):
                kinds.add("weight")
            else:
                kinds.add("sample" if is_sample else self.of(tensor))
        return kinds

    def of(self, tensor: Tensor) -> str:
        """Return the kind of a tensor.

        "sample": it depends on the samples. "weight": a parameter that is asked for, or made of
        such alone. "other": a parameter that is not asked for. "placeholder": what stands for the
        output of a convolution. "constant": all else.
        """
        if self.tape.weights.is_weight(tensor):
            return "weight"
        if marks_of(tensor).samples_in == self.session:
            return "sample"
        if isinstance(tensor, nn.Parameter):
            return "other" if tensor.requires_grad else "constant"
        if tensor.grad_fn is not None:
            return self._by_graph(tensor)
        return "constant" if marks_of(tensor).placeholder_of is None else "placeholder"

    def _by_graph(self, tensor: Tensor) -> str:
        """For what no operator here put out: custom functions, TorchScript, caches, writes."""
        ends = list(leaves(tensor))
        # Every use of a weight hangs on an anchor: whoever reaches one comes from the samples.
        if any(leaf is anchor for leaf in ends for anchor in self.tape.anchors):
            mark(tensor).samples_in = self.session
            self.program.repeats = False  # what made it, and of which entries, was not seen
            if self._orders.met:
                self.tape.route()
            return "sample"
        if any(self.tape.weights.tracks(leaf) for leaf in ends):
            self.tape.weights.mark_derived(tensor)
            return "weight"
        return "constant"
