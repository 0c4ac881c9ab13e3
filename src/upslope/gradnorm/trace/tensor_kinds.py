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
from upslope.gradnorm.core.tensor_marks import MARKS, Marks, mark, marks_of, shared_marks
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

_Reading = tuple[int, tuple[Any, ...]]
"""What `TensorKinds.read` returns: the kinds, and the outline where it is noted."""

_CONSTANTS: _Reading = (CONSTANTS, ())
_WEIGHTS: _Reading = (WEIGHTS, ())
_UNREAD: _Reading = (UNREAD, ())

_CONSTANT, _SAMPLE, _WEIGHT, _PLACEHOLDER, _ROW, _ODD = (1 << place for place in range(6))
"""The kinds of one tensor, a bit each, so that those of all that an operator takes are one number.
A placeholder holds NaN until it is normalised, a row was sent by the data, and of what is odd more
is to be asked."""

_WITH_NUMBER = _SAMPLE | _ROW
"""Those that have a number in the program."""


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


def _outline_without_tensors(value: Any, is_index: bool) -> Any:
    """Return what is noted of an argument that holds no tensor; None where it may hold some.

    is_index: whether it may be an index, or a part of one.
    """
    type_of_value = type(value)
    if type_of_value in _SEQUENCES and _WHOLE_NUMBERS.issuperset(map(type, value)):
        return outline_of(value) if -1 in value else tuple(value)
    if type_of_value in _PLAIN:
        return outline_of(value)
    return _outline_of_index(value) if is_index else None


def _read_as_meeting(
    operator: Operator,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    kinds: int,
    outline: list[Any],
) -> _Reading:
    """Return what `TensorKinds.read` does of weights, with samples and placeholders or without.

    Arguments as of `TensorKinds._decide`.
    """
    if not kinds & (_SAMPLE | _PLACEHOLDER):
        return _WEIGHTS if operator.runs_on_weights else _UNREAD
    meets = operator.meets and (kinds & _SAMPLE or operator.normalises)
    is_checked = operator.check is None or (not kwargs and operator.check(args))
    return (MEETING, tuple(outline)) if meets and is_checked else _UNREAD


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
        plain, in_front, number_of = self._plain_marks, self._marks_in_front, self._numbers.get
        outline: list[Any] = [operator.label]
        numbers: list[int | None] = []
        kinds, count, self.rows = 0, 0, None
        for value in (*args, *kwargs.values()) if kwargs else args:
            type_of_value = type(value)  # of a class derived from these nothing is known here
            if type_of_value is Tensor:
                marks = value.__dict__.get(MARKS)
                if marks is plain:
                    kind = _SAMPLE
                elif marks is in_front:
                    kind, self.meets_front = _SAMPLE, True
                else:
                    kind = self._kind_by_marks(value, marks)
                numbers.append(number_of(id(value)) if kind & _WITH_NUMBER else None)
            elif type_of_value is nn.Parameter:
                kind = self._kind_of_parameter(value)
                numbers.append(None)
            elif type_of_value in AS_IT_IS:
                outline.append(value if value != -1 else MINUS_ONE)
                continue
            elif operator.joins and (shapes := self._shapes_of_samples(value)) is not None:
                kinds, count = kinds | _SAMPLE, count + 1
                numbers += [number_of(id(tensor)) for tensor in value]
                outline.append(shapes)
                continue
            else:
                part = _outline_without_tensors(value, operator.moves)
                if part is None:
                    return _UNREAD
                outline.append(part)
                continue
            if kind == _ODD or value.layout is not _DENSE:
                return _UNREAD
            kinds, count = kinds | kind, count + 1
            # Of rows the data say how many there are.
            outline.append(value.shape if kind != _ROW else (value.shape[1:],))
        outline.append(tuple(numbers))
        return self._decide(operator, args, kwargs, kinds, count, outline)

    def _decide(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        kinds: int,
        count: int,
        outline: list[Any],
    ) -> _Reading:
        """Return what `read` does, once all arguments are looked at.

        operator, args, kwargs: as of `read`. kinds, count: of the tensors, where a list of them
        counts once. outline: of the call.
        """
        if kinds & _ROW:
            return self._read_as_rows(kinds, outline)
        if kinds & _WEIGHT:
            return _read_as_meeting(operator, args, kwargs, kinds, outline)
        if kinds & _PLACEHOLDER:
            return _UNREAD
        if kinds & _SAMPLE:
            is_told = self._is_told_of_samples(operator, args, count)
            return (SAMPLES, tuple(outline)) if is_told else _UNREAD
        return _CONSTANTS if operator.runs_on_constants else _UNREAD

    def _kind_by_marks(self, tensor: Tensor, marks: Marks | None) -> int:
        """Return the kind of a tensor, no parameter, of which more than `_plain_marks` is known."""
        if marks is None:
            # What has a graph was made where no operator was seen.
            return _CONSTANT if tensor.grad_fn is None else _ODD
        if marks.route is not None:
            return self._kind_of_routed(marks)
        if marks.is_packed:
            return _ODD
        if marks.placeholder_of is not None:
            return _PLACEHOLDER
        is_made_of_weights = marks.made_of is self._key_of_weights
        if is_made_of_weights and marks.samples_in is None:
            return _WEIGHT
        if is_made_of_weights or marks.samples_in != self.session:
            return _ODD
        self.meets_front |= marks.in_front >= 0
        return _SAMPLE

    def _kind_of_routed(self, marks: Marks) -> int:
        """Return the kind of a tensor that the data have sent somewhere: a row, of one group alone.

        marks: its marks. The group is that of the first row among an operator's arguments.
        """
        group, rows = marks.route.rows, self.rows
        is_other_group = group is None or (rows is not None and rows.rows is not group)
        if is_other_group or marks.samples_in != self.session or marks.in_front >= 0:
            return _ODD
        self.rows = marks.route
        return _ROW

    def _kind_of_parameter(self, parameter: nn.Parameter) -> int:
        if id(parameter) in self._tracked_ids:
            return _WEIGHT
        return _ODD if parameter.requires_grad or MARKS in parameter.__dict__ else _CONSTANT

    def _read_as_rows(self, kinds: int, outline: list[Any]) -> _Reading:
        """Return what `read` does of routed rows; arguments as of `_decide`."""
        if kinds & (_SAMPLE | _PLACEHOLDER):
            return _UNREAD
        outline.append(self.rows.rows.number)
        return (MEETING_ROWS if kinds & _WEIGHT else ROWS), tuple(outline)

    def _is_told_of_samples(self, operator: Operator, args: tuple[Any, ...], count: int) -> bool:
        """Whether no more is to be asked of an operator on samples and constants alone.

        operator, args, count: as of `_decide`.
        """
        # A constant that becomes as long as samples are is no sample yet.
        if operator.lends and not (args and args[0].__dict__.get(MARKS) is self._plain_marks):
            return False
        if operator.moves:
            # What is put beside others, or moved in a row alone, has more to be asked.
            is_alone = _puts_numbers(args) if operator.puts else count == 1
            if not is_alone or _peek_at_transforms() is not None:
                return False
        return operator.runs_on_samples

    def _shapes_of_samples(self, values: Any) -> tuple[torch.Size, ...] | None:
        """Return the shapes of dense samples with dimensions, as they come to be joined.

        None where the values are no sequence of these, or an empty one.
        """
        if type(values) not in _SEQUENCES or not values:
            return None
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
