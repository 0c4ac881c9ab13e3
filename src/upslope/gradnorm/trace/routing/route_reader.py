"""Readings of operators on rows that the data have sent somewhere.

Asked by `routing`, which keeps the results. Here stands which reading an operator gets, what tells
where a mask is true, and what works row by row; `row_groups` reads what takes rows and puts them
back, `moves_within` what moves entries within each sample. Each form of an operator that is not
written down there is not known, and costs time, not the right numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.trace.routing.decisions import decision_of
from upslope.gradnorm.trace.routing.indexing import MOVING_WITHIN, PUTTING, TAKING, indices_within
from upslope.gradnorm.trace.routing.moves_within import MovesWithin
from upslope.gradnorm.trace.routing.routed_rows import (
    Choice,
    Places,
    Reading,
    Route,
    RowGroup,
    outline_of_rows,
)
from upslope.gradnorm.trace.routing.row_groups import RowGroups
from upslope.gradnorm.trace.routing.row_operators import keeps_rows

_TELLING = frozenset({"where", "nonzero", "argwhere"})
"""Operators that tell where a mask is true; `where` with one argument."""

_BY_INDEX = TAKING | PUTTING | MOVING_WITHIN

_DROPPING_FIRST = frozenset({("squeeze", 0), ("flatten", 0, 1), ("__getitem__", 0)})
"""Operators and their numbers that take away a dimension 0 of length one."""

MAY_ROUTE = _TELLING | _BY_INDEX
"""Operators that may be the first to send entries where the data say."""


class RouteReader:
    """Says of the operators of one pass what they do with routed rows.

    n: the samples. is_in_front: whether a tensor is known to have each sample's entries together in
    dimension 0 (`rows_in_front`).
    """

    def __init__(self, n: int, is_in_front: Callable[[Tensor], bool]):
        self._n, self._is_in_front = n, is_in_front
        self.is_met = False
        """Whether some entries went where the data say."""
        self.is_lost = False
        """Whether an operator was met that is not known here."""
        self.is_closed = False
        """Whether the pass of the model is over: a loss takes no rows."""
        self._choices = 0
        self.forget()

    def forget(self) -> None:
        """Drop all rows, and the tensors that they were taken from or put into."""
        self.places = Places()
        self.groups = RowGroups(self.places)
        self._moves_within = MovesWithin(self._n, self._is_in_front, self.places)

    def concern(self, name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> bool:
        """Whether an operator takes routed rows, or is one that may make some."""
        if self.is_met and any(marks_of(t).route is not None for t in tensors):
            return True
        if self.is_closed or self.is_lost or self._n < 2:
            return False
        if name in _TELLING:
            return len(tensors) == 1 and len(args) == 1
        return name in _BY_INDEX and len(tensors) > 1

    def works_by_row(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether an operator works on rows one by one, and no more is to be asked of it.

        name, args, kwargs: the operator and what it gets: rows of one group, weights and constants.
        """
        if self.is_closed or self.is_lost:
            return False
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        # Whole numbers may be indices, of which note is taken.
        are_dense = all(x.layout == torch.strided and x.is_floating_point() for x in tensors)
        return are_dense and keeps_rows(name, args, kwargs, _is_routed)

    def take_for_samples(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[int, str]
    ) -> dict[int, str]:
        """Return the kinds for `read`, with constants as samples that move entries within rows.

        Arguments as of `read`.
        """
        kinds_to_read = dict(kinds)
        if "sample" in kinds.values():  # else what comes out is a constant
            for index in indices_within(name, args, kwargs):
                if kinds[id(index)] == "constant":
                    kinds_to_read[id(index)] = "sample"
        return kinds_to_read

    def read(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[int, str]
    ) -> Reading | None:
        """Return what an operator does with routed rows; None where that is not known.

        name, args, kwargs: the operator and what it gets. kinds: `id` -> the kind of each tensor
        among them (`tensor_kinds`).
        """
        if self.is_closed or self.is_lost:
            return None
        samples = {key for key, kind in kinds.items() if kind == "sample"}
        # Rows meet rows, weights and constants; they are taken from, and put into, other samples.
        if not set(kinds.values()) <= {"sample", "weight", "constant"}:
            return None
        routes = [marks_of(t).route for t in args if isinstance(t, Tensor)]
        first = routes[0] if routes else None
        # Of these the first that holds decides: what a tensor's mark says, or the operator's name.
        if first is not None and first.wrapped is not None:
            return _read_unwrapping(name, args, kwargs, first.wrapped)
        if name in _TELLING and len(args) == 1:
            return self._read_places(name, args, kwargs, samples)
        if name in TAKING and first is None and args and isinstance(args[0], Tensor):
            return self._read_taking(name, args, kwargs, kinds, samples)
        if name in MOVING_WITHIN:
            return self._moves_within.read_moving(name, args, kwargs, kinds)
        if name in PUTTING:
            return self._read_putting(name, args, kwargs, kinds)
        if first is not None and first.places is not None and len(routes) == 1:
            return _read_columns(name, args, kwargs, first.places)
        return _read_rows(name, args, kwargs, samples)

    def _read_taking(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        kinds: Mapping[int, str],
        samples: Collection[int],
    ) -> Reading | None:
        """Read what takes entries of a tensor that no data have sent anywhere."""
        if kinds[id(args[0])] == "weight":
            return None
        picking = self._moves_within.read_picking(name, args, kwargs, samples)
        return picking or self.groups.read_taking(name, args, kwargs, samples)

    def _read_putting(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[int, str]
    ) -> Reading | None:
        """Read what puts rows back, or entries into each sample's own."""
        if "weight" in kinds.values():
            return None
        sets_items = name == "__setitem__" and not kwargs and len(args) == 3
        if sets_items and type(args[2]) in {bool, int, float}:
            return self._moves_within.read_filling(args, kinds)
        reading = self.groups.read_putting(name, args, kwargs)
        if reading is None and sets_items:
            return self._moves_within.read_putting(args, kinds)
        return reading

    def _read_places(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], samples: Collection[int]
    ) -> Reading | None:
        """Read `where(mask)` and `nonzero`."""
        (mask,) = args
        if id(mask) not in samples or marks_of(mask).route is not None or mask.dim() == 0:
            return None
        if mask.is_floating_point() or set(kwargs) - {"as_tuple"}:
            return None
        choice = Choice(self._choices, int(torch.count_nonzero(mask)), decision_of(mask))
        self._choices += 1
        outline = (name, mask.shape, repr(dict(kwargs)), choice.count == 0)
        return Reading(outline, Route(places=choice))


def _read_columns(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], choice: Choice
) -> Reading | None:
    """Read what makes indices of a table of places, (count, dimensions), and loops over one."""
    table, rest = args[0], tuple(args[1:])
    if kwargs or not isinstance(table, Tensor) or table.dim() != 2:
        return None
    if name == "unbind" and rest in ((), (0,)):  # a loop over the experts that were chosen
        return Reading((name, choice.number, choice.count), loop=choice)
    column = name == "__getitem__" and rest and isinstance(rest[0], tuple) and len(rest[0]) == 2
    if column and rest[0][0] == slice(None) and type(rest[0][1]) is int:
        return Reading((name, choice.number, repr(rest)), Route(places=choice))
    single = table.shape[1] == 1
    flat = (name == "flatten" and not rest) or (
        name in {"view", "reshape"} and rest in ((-1,), ((-1,),))
    )
    if single and (flat or (name == "squeeze" and rest in ((-1,), (1,)))):
        return Reading((name, choice.number, repr(rest)), Route(places=choice))
    return None


def _read_unwrapping(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], group: RowGroup
) -> Reading | None:
    """Read what makes rows, (rows, ...), of wrapped ones, (1, rows, ...)."""
    x, rest = args[0], tuple(args[1:])
    numbers = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if kwargs or not isinstance(x, Tensor) or not all(type(i) is int for i in numbers):
        return None
    is_shape = name in {"view", "reshape"} and tuple(numbers) == (-1, *x.shape[2:])
    if not is_shape and (name, *numbers) not in _DROPPING_FIRST:
        return None
    return Reading((name, "unwrapped", x.shape[2:], group.number), Route(rows=group), group)


def _read_rows(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], samples: Collection[int]
) -> Reading | None:
    """Read an operator that works row by row (`row_operators`)."""
    values = [*args, *kwargs.values()]
    values = [x for v in values for x in (v if isinstance(v, (tuple, list)) else (v,))]
    routes = [(t, marks_of(t).route) for t in values if isinstance(t, Tensor)]
    groups = {route.rows for _, route in routes if route is not None}  # None: of places
    if len(groups) != 1 or any(id(t) in samples for t, route in routes if route is None):
        return None
    (group,) = groups
    if group is None or not keeps_rows(name, args, kwargs, _is_routed):
        return None
    outline = (name, *map(outline_of_rows, args), *map(outline_of_rows, kwargs.items()))
    return Reading((outline, group.number), Route(rows=group), group)


def _is_routed(tensor: Tensor) -> bool:
    return marks_of(tensor).route is not None
