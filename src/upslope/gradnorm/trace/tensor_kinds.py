"""Kinds of tensors in one pass of a model: samples, weights, placeholders, constants.

Asked by `intercept` of every tensor that an operator takes: it must be fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from upslope.gradnorm.core.program.argument_outlines import (
    AS_IT_IS,
    MINUS_ONE,
    outline_of,
)
from upslope.gradnorm.core.program.program import Program
from upslope.gradnorm.core.tensor_marks import MARKS, mark, marks_of, shared_marks
from upslope.gradnorm.core.uses.tape import Tape
from upslope.gradnorm.core.weights.weights import leaves
from upslope.gradnorm.trace.operator_facts import Operator
from upslope.gradnorm.trace.sequence_order import SequenceOrders

_session = itertools.count()

_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
"""Types of arguments that hold no tensor."""

_PLACES = frozenset({int, type(None), type(...)})
"""Types of what an index without tensors is made of."""

_SEQUENCES = frozenset({tuple, list, torch.Size})
_DENSE = torch.strided
_peek_at_transforms = torch._C._functorch.peek_interpreter_stack
_WHOLE_NUMBERS = frozenset({int})

CONSTANTS, SAMPLES, MEETING, WEIGHTS, ROWS, MEETING_ROWS, UNREAD = range(7)
"""The kinds of tensors in most calls of operators: see `TensorKinds.read`."""

_CONSTANTS: tuple[int, tuple[Any, ...]] = (CONSTANTS, ())
_WEIGHTS: tuple[int, tuple[Any, ...]] = (WEIGHTS, ())
_UNREAD: tuple[int, tuple[Any, ...]] = (UNREAD, ())


def _outline_of_index(index: Any) -> tuple[Any, ...] | None:
    """Return what is noted of an index of numbers of Python's alone; None for any other."""
    parts: list[Any] = []
    for item in index if type(index) is tuple else (index,):
        kind = type(item)
        if kind in _PLACES:
            parts.append(item if item != -1 else MINUS_ONE)
        elif kind is slice:
            part = (item.start, item.stop, item.step)
            if not _PLACES.issuperset(map(type, part)):
                return None
            parts.append(outline_of(part) if -1 in part else part)
        else:
            return None
    return tuple(parts)


def _puts_numbers(args: tuple[Any, ...]) -> bool:
    """Whether `target[index] = value` puts numbers with a fraction where the data do not say."""
    target, index, value = args
    whole = isinstance(value, Tensor) and not value.is_floating_point()
    return target.is_floating_point() and not whole and not isinstance(index, Tensor)


class TensorKinds:
    """Tells the kinds of the tensors of one pass.

    tape, program, orders: of the pass; they are told of tensors that depend on the samples and
    that no operator under the interceptor put out. buffers: the `id`s of the model's buffers.
    """

    def __init__(
        self, tape: Tape, program: Program, orders: SequenceOrders, buffers: Collection[int]
    ):
        self.tape, self.program, self._orders = tape, program, orders
        self._buffers = buffers
        self.buffers_written: list[Tensor] = []
        """Buffers that samples were written into: they lose their mark when the model has run."""
        self.session = next(_session)
        """What marks the samples of this pass, and of no other."""
        self._plain_marks = shared_marks(self.session)
        """The marks of samples of which nothing else is known."""
        self._marks_in_front = shared_marks(self.session, in_front=0)
        """The marks of those that have the samples' entries in front (`rows_in_front`)."""
        self.meets_front = False
        """Whether such a tensor was among those that an operator took."""
        self.rows: Any = None
        """The rows of the last operator that was `ROWS`, or `MEETING_ROWS`."""
        self._number, self._numbers = program.number, program.numbers
        self._tracks, self._types = tape.weights.tracks, tape.types
        self._key_of_weights, self._tracked_ids = tape.weights.key, tape.weights.tracked_ids

    def as_sample(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the engine's own, marked as one that depends on the samples."""
        self._mark(tensor)
        self._number(tensor)
        return tensor

    def as_samples_in_front(self, tensor: Tensor, n: int) -> Tensor:
        """Return the same of n samples' rows, as the inputs have them."""
        if n > 1 and not tensor.is_nested and tensor.shape[:1] == (n,):
            self.mark_in_front(tensor)
        return self.as_sample(tensor)

    def mark_in_front(self, tensor: Tensor) -> None:
        """Mark a tensor of samples as one that has their entries in front (`rows_in_front`)."""
        if tensor.is_inference():
            return  # it counts no writes
        if tensor._version == 0 and tensor.__dict__.get(MARKS) in (None, self._plain_marks):
            tensor.__dict__[MARKS] = self._marks_in_front
        else:
            marks = mark(tensor)
            marks.samples_in, marks.in_front = self.session, tensor._version

    def is_in_front(self, tensor: Tensor) -> bool:
        """Whether a tensor has the samples' entries in front, as far as is known."""
        marks = marks_of(tensor)
        is_marked = marks.samples_in == self.session and marks.in_front == tensor._version
        return is_marked and self.program.steering.counts_writes

    def was_in_front(self, tensor: Tensor) -> bool:
        """Whether a tensor had the samples' entries in front before it was last written to."""
        marks = marks_of(tensor)
        is_marked = marks.samples_in == self.session and marks.in_front >= 0
        was_there = is_marked and marks.in_front == tensor._version - 1
        return was_there and self.program.steering.counts_writes

    def mark_sample(self, tensor: Tensor) -> None:
        """Mark what an operator made as depending on the samples. Called for every one of them."""
        self._types.add(tensor.dtype)
        self._number(tensor)
        if tensor.__dict__.get(MARKS) is not self._plain_marks:
            self._mark(tensor)
            if id(tensor) in self._buffers:
                self.buffers_written.append(tensor)

    def _mark(self, tensor: Tensor) -> None:
        marks = tensor.__dict__.get(MARKS)
        if marks is None:
            tensor.__dict__[MARKS] = self._plain_marks
        elif marks.samples_in != self.session and marks.placeholder_of is None:
            marks = mark(tensor)
            marks.samples_in, marks.in_front = self.session, -1

    def read(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int, tuple[Any, ...]]:
        """Return which kinds of tensors an operator takes, and its outline (`program`).

        The kinds are `CONSTANTS`, `SAMPLES`, `MEETING` of samples and weights, or `WEIGHTS` among
        themselves and constants; `ROWS` of one group that the data have sent somewhere (`routing`),
        beside constants alone, or `MEETING_ROWS` of these and weights. They are `UNREAD` where it
        takes anything but dense tensors and plain numbers, or where more is to be asked of this
        operator. Asked of every one: it must be fast.

        operator, args, kwargs: the operator and what it got.
        """
        moves, plain, tracked_ids = operator.moves, self._plain_marks, self._tracked_ids
        in_front = self._marks_in_front
        outline: list[Any] = [operator.name]
        number_of, numbers = self._numbers.get, list[int | None]()
        samples, constants, meets, has_placeholder = 0, 0, False, False
        rows: Any = None
        for value in (*args, *kwargs.values()) if kwargs else args:
            kind = type(value)  # of a class derived from these nothing is known here
            if kind is Tensor:
                marks = value.__dict__.get(MARKS)
                if marks is plain:
                    samples += 1
                    numbers.append(number_of(id(value)))
                elif marks is in_front:
                    samples += 1
                    numbers.append(number_of(id(value)))
                    self.meets_front = True
                elif marks is None:
                    # What has a graph was made where no operator was seen.
                    if value.grad_fn is not None:
                        return _UNREAD
                    constants += 1
                elif marks.route is not None:
                    group = marks.route.rows
                    if group is None or (rows is not None and rows.rows is not group):
                        return _UNREAD
                    if marks.samples_in != self.session or marks.in_front >= 0:
                        return _UNREAD
                    rows = marks.route
                    numbers.append(number_of(id(value)))
                    outline.append((value.shape[1:],))  # the same of any number of rows
                    continue
                elif marks.is_packed:
                    return _UNREAD
                elif marks.placeholder_of is not None:  # which holds NaN until it is normalised
                    has_placeholder = True
                elif marks.made_of is self._key_of_weights and marks.samples_in is None:
                    meets = True
                elif marks.samples_in == self.session and marks.made_of is not self._key_of_weights:
                    samples += 1
                    numbers.append(number_of(id(value)))
                    self.meets_front |= marks.in_front >= 0
                else:
                    return _UNREAD
                if value.layout is not _DENSE:
                    return _UNREAD
                outline.append(value.shape)
            elif kind is nn.Parameter:
                if id(value) in tracked_ids:
                    meets = True
                elif value.requires_grad or MARKS in value.__dict__:
                    return _UNREAD
                else:
                    constants += 1
                if value.layout is not _DENSE:
                    return _UNREAD
                outline.append(value.shape)
            elif kind is int or kind in AS_IT_IS:
                outline.append(value if value != -1 else MINUS_ONE)
            elif kind in _SEQUENCES:
                if _WHOLE_NUMBERS.issuperset(map(type, value)):
                    outline.append(outline_of(value) if -1 in value else tuple(value))
                elif operator.joins and (shapes := self._shapes_of_samples(value)) is not None:
                    samples += 1
                    numbers += [number_of(id(tensor)) for tensor in value]
                    outline.append(shapes)
                elif moves and (index := _outline_of_index(value)) is not None:
                    outline.append(index)
                else:
                    return _UNREAD
            elif kind in _PLAIN:
                outline.append(outline_of(value))
            elif moves and (index := _outline_of_index(value)) is not None:
                outline.append(index)
            else:
                return _UNREAD
        outline.append(tuple(numbers))
        if rows is not None:
            if samples or has_placeholder:
                return _UNREAD
            self.rows = rows
            return (MEETING_ROWS if meets else ROWS), (*outline, rows.rows.number)
        if meets:
            if not (samples or has_placeholder):
                return _WEIGHTS if operator.runs_on_weights else _UNREAD
            meets = operator.meets and (samples > 0 or (has_placeholder and operator.normalises))
            is_checked = operator.check is None or (not kwargs and operator.check(args))
            return (MEETING, tuple(outline)) if meets and is_checked else _UNREAD
        if has_placeholder:
            return _UNREAD
        if not samples:
            return _CONSTANTS if operator.runs_on_constants else _UNREAD
        # A constant that becomes as long as samples are is no sample yet.
        if operator.lends and not (args and args[0].__dict__.get(MARKS) is plain):
            return _UNREAD
        if moves:
            # What is put beside others, or moved in a row alone, has more to be asked.
            is_told = _puts_numbers(args) if operator.puts else samples + constants == 1
            if not is_told or _peek_at_transforms() is not None:
                return _UNREAD
        return (SAMPLES, tuple(outline)) if operator.runs_on_samples else _UNREAD

    def _shapes_of_samples(self, values: Iterable[Any]) -> tuple[torch.Size, ...] | None:
        """Return the shapes of dense samples with dimensions, as they come to be joined.

        None where there is anything else among the values.
        """
        shapes = []
        for value in values:
            if type(value) is not Tensor or value.layout is not _DENSE or not value.shape:
                return None
            marks = marks_of(value)
            if marks is not self._plain_marks and not (
                marks.samples_in == self.session
                and marks.made_of is not self._key_of_weights
                and marks.placeholder_of is None
                and marks.route is None
                and not marks.is_packed
            ):
                return None
            shapes.append(value.shape)
        return tuple(shapes)

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on no sample and on no parameter that is asked for."""
        return self.of(tensor) == "constant"

    def is_sample(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the samples."""
        return self.of(tensor) == "sample"

    def of_all(self, tensors: Iterable[Tensor]) -> set[str]:
        """Return the kinds of several tensors. Asked of every operator: samples are told first."""
        kinds = set()
        for tensor in tensors:
            plain = tensor.__dict__.get(MARKS) is self._plain_marks and not self._tracks(tensor)
            kinds.add("sample" if plain else self.of(tensor))
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
