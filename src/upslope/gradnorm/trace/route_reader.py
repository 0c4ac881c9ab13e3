"""Readings of operators on rows that the data have sent somewhere.

Asked by `routing`, which keeps the results. Each form of an operator that is not written down here
is not known, and costs time, not the right numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.program import descriptor_of
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.trace.decisions import Decision, decision_of
from upslope.gradnorm.trace.row_operators import keeps_rows
from upslope.gradnorm.trace.rows_in_front import takes_own_rows


@dataclass(eq=False, slots=True)
class Choice:
    """One call that tells where a mask is true. number: its place among those of the pass."""

    number: int
    count: int
    """How many places it has told."""
    decision: Decision | None
    """How the mask was made, where that is known."""


@dataclass(eq=False, slots=True)
class RowGroup:
    """Rows that one index takes out of dimension 0 of tensors, and puts back."""

    number: int
    key: Tensor
    """The index, or the mask, as the model holds it."""
    version: int
    """The version of the key when it was first used: it may be written later."""
    index: Tensor
    """(rows,): where the rows are in the tensors that they are taken from."""
    places: list[int] = field(default_factory=list)
    """The tensors that rows are taken from or put into, by their number."""


@dataclass(eq=False, slots=True)
class Route:
    """The mark of a tensor whose dimension 0 is as long as the data have it.

    Either rows of a group, or places: an index of one dimension, or a table (count, dimensions).
    """

    rows: RowGroup | None = None
    places: Choice | None = None


@dataclass(slots=True)
class Reading:
    """What an operator does with routed rows.

    outline: what the program notes of it (`program`). route: of what it makes. group: of the rows
    that it works on. place: the tensor that rows are taken from or put into; `makes_place` where
    that is what it makes. along: the dimensions along which its entries may have moved, in which no
    samples may be told apart. must_be_in_front: whether each sample's entries must be together in
    dimension 0 of the place. fills: a tensor that has them so once the operator has written to it.
    loop: the places that a loop goes through.
    """

    outline: tuple[Any, ...]
    route: Route | None = None
    group: RowGroup | None = None
    place: Tensor | None = None
    makes_place: bool = False
    along: tuple[int, ...] = ()
    must_be_in_front: bool = False
    fills: Tensor | None = None
    loop: Choice | None = None


_TELLING = frozenset({"where", "nonzero", "argwhere"})
"""Operators that tell where a mask is true; `where` with one argument."""

_TAKING = frozenset({"__getitem__", "index_select"})
_PUTTING = frozenset({"__setitem__", "index_add", "index_add_"})
_GATHERING = frozenset({"gather", "take_along_dim"})
_WITHIN = _GATHERING | frozenset(
    {"scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"}
)
"""Operators that move entries along one dimension, by an index for each of the others."""
_PARTS_OF_INDEX = frozenset({Tensor, int, slice})
"""Types of the parts of an index that stand for one dimension each."""

MAY_ROUTE = _TELLING | _TAKING | _PUTTING | _WITHIN
"""Operators that may be the first to send entries where the data say."""


class Places:
    """Tensors of a pass that rows are taken from or put into, numbered in order."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.shapes: list[torch.Size] = []
        self._versions: list[int] = []
        self._numbers: dict[int, int] = {}

    def add(self, tensor: Tensor) -> int:
        """Return the number of a tensor, which is what it is now."""
        number = self._numbers.get(id(tensor))
        if number is None:
            number = self._numbers[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
            self.shapes.append(tensor.shape)
            self._versions.append(tensor._version)
        self._versions[number] = tensor._version
        return number

    def is_as_before(self, tensor: Tensor) -> bool:
        """Whether nothing was written into a tensor since it was added; others may be added.

        What was written may be rows in another order.
        """
        number = self._numbers.get(id(tensor))
        if number is None:
            return True
        return self._versions[number] == tensor._version and self.shapes[number] == tensor.shape


class RouteReader:
    """Says of the operators of one pass what they do with routed rows.

    n: the samples. is_in_front: whether a tensor is known to have each sample's entries together in
    dimension 0 (`rows_in_front`).
    """

    def __init__(self, n: int, is_in_front: Callable[[Tensor], bool]):
        self._n, self._is_in_front = n, is_in_front
        self.groups: list[RowGroup] = []
        self.places = Places()
        self.is_met = False
        """Whether some entries went where the data say."""
        self.is_lost = False
        """Whether an operator was met that is not known here."""
        self.is_closed = False
        """Whether the pass of the model is over: a loss takes no rows."""
        self._groups_by_key: dict[int, RowGroup] = {}
        self._choices = 0

    def concern(self, name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> bool:
        """Whether an operator takes routed rows, or is one that may make some."""
        if self.is_met and any(marks_of(t).route is not None for t in tensors):
            return True
        if self.is_closed or self.is_lost or self._n < 2:
            return False
        if name in _TELLING:
            return len(tensors) == 1 and len(args) == 1
        return name in _TAKING | _PUTTING | _WITHIN and len(tensors) > 1

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
        # The first that is true of a tensor decides: what it is to the operator, by its mark.
        if name in _TELLING:
            return self._read_places(name, args, kwargs, samples)
        if name in _TAKING and args and isinstance(args[0], Tensor):
            first = routes[0]
            if first is None:
                if kinds[id(args[0])] == "weight":
                    return None
                picking = self._read_picking(name, args, kwargs, samples)
                return picking or self._read_taking(name, args, kwargs, samples)
            if first.places is not None:
                return self._read_columns(name, args, kwargs, first.places)
        if name in _WITHIN:
            return self._read_moving(name, args, kwargs, kinds)
        if name in _PUTTING:
            if "weight" in kinds.values():
                return None
            if name == "__setitem__" and type(args[2]) in {bool, int, float}:
                return self._read_filling(args, kinds)
            return self._read_putting(name, args, kwargs)
        if len(routes) == 1 and routes[0] is not None and routes[0].places is not None:
            return self._read_columns(name, args, kwargs, routes[0].places)
        return self._read_rows(name, args, kwargs, samples)

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
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], choice: Choice
    ) -> Reading | None:
        """Read what makes indices of a table of places, (count, dimensions)."""
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

    def _group_of(self, key: Tensor, *, is_mask: bool = False) -> RowGroup:
        """Return the group of the rows that an index takes, or a mask."""
        group = self._groups_by_key.get(id(key))
        # An index that the model has written into since takes other rows.
        if group is None or group.version != key._version:
            index = key.nonzero()[:, 0] if is_mask else key.detach().clone()
            group = RowGroup(len(self.groups), key, key._version, index)
            self.groups.append(group)
            self._groups_by_key[id(key)] = group
        return group

    def _index(
        self, tensor: Tensor, index: Any, samples: Collection[int]
    ) -> tuple[RowGroup, int] | None:
        """Return the group that an index takes rows of, and the dimensions of what it takes."""
        items = index if isinstance(index, tuple) else (index,)
        first, count = items[0], 0
        if not isinstance(first, Tensor):
            return None
        route = marks_of(first).route
        if route is None:
            # A mask of single rows; others tell where they are true by `where`.
            mask = first.dtype == torch.bool and first.dim() == 1 and len(items) == 1
            if not mask or id(first) not in samples or len(first) != len(tensor):
                return None
            return self._group_of(first, is_mask=True), tensor.dim()
        for item in items:
            if not isinstance(item, Tensor):
                break
            other = marks_of(item).route
            if other is None or other.places is not route.places or item.dim() != 1:
                return None
            count += 1
        rest = items[count:]
        if route.places is None or not all(x is None or x == slice(None) for x in rest):
            return None
        return self._group_of(first), tensor.dim() - count + 1 + sum(x is None for x in rest)

    def _read_taking(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], samples: Collection[int]
    ) -> Reading | None:
        """Read `x[index]`, `x[mask]` and `index_select(x, 0, index)`."""
        source, index = args[0], args[-1]
        if kwargs or (name == "index_select" and (len(args) != 3 or args[1] != 0)):
            return None
        # A plane of a mask, taken by one number: no entry with a gradient goes anywhere.
        whole = not source.is_floating_point() and not source.is_complex()
        if whole and isinstance(index, Tensor) and index.dim() == 0 and id(index) in samples:
            if index.dtype == torch.bool or marks_of(index).route is not None:
                return None
            return Reading((name, descriptor_of(source), "one"))
        # A parameter, whose rows are those of no sample, is no place of samples.
        if whole or source.dim() == 0 or (source.grad_fn is None and source.requires_grad):
            return None
        group_and_rank = self._index(source, index, samples)
        if group_and_rank is None or not self.places.is_as_before(source):
            return None
        group, _ = group_and_rank
        outline = (name, source.shape, self._outline(index), group.number, self._is_empty(group))
        return Reading(outline, Route(rows=group), group, source)

    def _read_moving(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[int, str]
    ) -> Reading | None:
        """Read `x.gather(dim, index)` and its like, which move entries along one dimension."""
        order = ("input", "index", "dim") if name == "take_along_dim" else ("input", "dim", "index")
        arguments = dict(zip((*order, "src", "reduce"), args, strict=False)) | dict(kwargs)
        if "indices" in arguments:
            arguments["index"] = arguments.pop("indices")
        x, dim, index = (arguments.pop(key, None) for key in ("input", "dim", "index"))
        if not (isinstance(x, Tensor) and isinstance(index, Tensor) and type(dim) is int):
            return None
        source = arguments.pop("src", arguments.pop("value", None))
        entries = source if isinstance(source, Tensor) else x
        is_routed = any(marks_of(t).route is not None for t in (x, index, entries))
        if is_routed or not (x.dim() == index.dim() == entries.dim() > 1):
            return None
        takes = name in _GATHERING
        if takes and source is None and kinds[id(x)] == "constant" and kinds[id(index)] == "sample":
            # Numbers of no sample are looked up: the samples are where the index has them.
            return Reading(
                (name, x.shape, index.shape, dim, *map(descriptor_of, arguments.items()))
            )
        # What is scattered into may be the same for all samples.
        if {kinds[id(index)], kinds[id(entries)]} != {"sample"} or kinds[id(x)] == "weight":
            return None
        if entries is x and not (source is None if takes else type(source) in {int, float}):
            return None
        shapes = x.shape, index.shape, entries.shape
        number = source if entries is x else None
        outline = (
            name,
            *shapes,
            dim,
            descriptor_of(number),
            *map(descriptor_of, arguments.items()),
        )
        along = (dim % x.dim(),)
        reading = self._moving(outline, entries, along)
        # Where a number is source says the index alone, and whose that is, what it was made of.
        router = _router_of(index) if reading is None and entries is x and not takes else None
        return reading if router is None else self._moving((*outline, "chosen"), router, along)

    def _moving(
        self, outline: tuple[Any, ...], x: Tensor, along: tuple[int, ...]
    ) -> Reading | None:
        """Return the reading of an operator that moves entries of x along some dimensions."""
        # What has no gradient has no samples that a backward pass could show.
        if x.grad_fn is not None and self.places.is_as_before(x):
            return Reading(outline, place=x, along=along)
        is_told = self._is_in_front(x) and 0 not in along
        return Reading((*outline, "in front")) if is_told else None

    def _read_picking(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], samples: Collection[int]
    ) -> Reading | None:
        """Read what takes entries of each sample: `x[rows, index]`, or `x[index]` of flat rows.

        Constant rows, as `torch.arange(n)[:, None]`, are not for the data to say. Flat rows
        of many samples are taken by `index + offsets`, where each sample's numbers are those of its
        own rows: that is looked at.
        """
        if kwargs or (name == "index_select" and (len(args) != 3 or args[1] != 0)):
            return None
        x, index = args[0], args[-1]
        items = index if isinstance(index, tuple) else (index,)
        tensors = [item for item in items if isinstance(item, Tensor)]
        if any(t.dtype != torch.int64 or marks_of(t).route is not None for t in tensors):
            return None
        if len(items) > x.dim() or not all(type(i) in _PARTS_OF_INDEX for i in items):
            return None
        along = [d for d, i in enumerate(items) if isinstance(i, Tensor) and id(i) in samples]
        outline = (name, x.shape, descriptor_of(index))
        if not along or 0 not in along:
            # `x[arange(n), index]` alone has its samples in front whatever the data say.
            constants = [t for t in tensors if id(t) not in samples]
            is_known = any(t.shape == (self._n,) for t in constants)
            return self._moving(outline, x, tuple(along)) if along and not is_known else None
        if len(tensors) > 1 or not takes_own_rows(x, items[0], self._n):
            return None
        if self._is_in_front(x):
            return Reading((*outline, "own rows in front"))
        has_place = x.grad_fn is not None and self.places.is_as_before(x)
        return (
            Reading((*outline, "own rows"), place=x, must_be_in_front=True) if has_place else None
        )

    def _read_filling(self, args: Sequence[Any], kinds: Mapping[int, str]) -> Reading | None:
        """Read `x[mask] = number` and `x[arange(n), index] = number`.

        They write into the rows of those samples that the mask or the index is of.
        """
        target, index, number = args
        items = index if isinstance(index, tuple) else (index,)
        of_samples = [t for t in items if isinstance(t, Tensor) and kinds[id(t)] == "sample"]
        if not of_samples or not all(map(self._is_in_front, of_samples)) or not target.dim():
            return None
        first = items[0]
        if first is of_samples[0]:
            fills = len(items) == 1 and first.dtype == torch.bool and len(first) == len(target)
        else:
            n = self._n
            fills = len(target) == n and all(isinstance(t, Tensor) for t in items)
            fills &= isinstance(first, Tensor) and torch.equal(first, torch.arange(n))
            fills &= len(of_samples) == len(items) - 1 and all(t.shape == (n,) for t in of_samples)
        if not fills:
            return None
        outline = ("filled", target.shape, descriptor_of(index), descriptor_of(number))
        if kinds[id(target)] == "constant" or self._is_in_front(target):
            return Reading((*outline, "in front"), fills=target)
        is_place = target.grad_fn is not None and self.places.is_as_before(target)
        return Reading(outline, place=target, must_be_in_front=True) if is_place else None

    def _read_putting(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Reading | None:
        """Read `out[index] = rows` and `out.index_add_(0, index, rows)`."""
        if kwargs or len(args) != (3 if name == "__setitem__" else 4):
            return None
        target, index, rows = args[0], args[-2], args[-1]
        if not (isinstance(target, Tensor) and isinstance(rows, Tensor)) or not target.dim():
            return None
        of_rows, of_target = marks_of(rows).route, marks_of(target).route
        if of_rows is None or of_rows.rows is None or of_target is not None:
            return None
        is_leaf = target.grad_fn is None and target.requires_grad
        if not target.is_floating_point() or is_leaf or not self.places.is_as_before(target):
            return None
        group = of_rows.rows
        if name == "__setitem__":
            # Rows of fewer dimensions than their places would be spread along others.
            if self._index(target, index, {id(group.key)}) != (group, rows.dim()):
                return None
        else:
            same = isinstance(index, Tensor) and self._groups_by_key.get(id(index)) is group
            if not same or index._version != group.version or index.dtype == torch.bool:
                return None
            if args[1] != 0 or rows.dim() != target.dim():
                return None
        outline = (name, target.shape, self._outline(index), group.number, rows.shape[1:])
        return Reading(outline, None, group, target, makes_place=name == "index_add")

    def _read_rows(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], samples: Collection[int]
    ) -> Reading | None:
        """Read an operator that works row by row."""
        values = [*args, *kwargs.values()]
        values = [x for v in values for x in (v if isinstance(v, (tuple, list)) else (v,))]
        routes = [(t, marks_of(t).route) for t in values if isinstance(t, Tensor)]
        groups = {route.rows for _, route in routes if route is not None}  # None: of places
        if len(groups) != 1 or any(id(t) in samples for t, route in routes if route is None):
            return None
        (group,) = groups
        if group is None or not keeps_rows(name, args, kwargs, self._is_routed):
            return None
        outline = (name, *map(self._outline, args), *map(self._outline, kwargs.items()))
        return Reading((outline, group.number), Route(rows=group), group)

    @staticmethod
    def _is_routed(tensor: Tensor) -> bool:
        return marks_of(tensor).route is not None

    @staticmethod
    def _is_empty(group: RowGroup) -> bool:
        """Whether there are no rows: what is done with some of them no such batch has shown."""
        return len(group.index) == 0

    def _outline(self, value: Any) -> Any:
        """What is noted of an argument: the same for any number of routed rows."""
        if isinstance(value, (tuple, list)):
            return tuple(map(self._outline, value))
        if isinstance(value, Tensor):
            route = marks_of(value).route
            if route is not None:
                number = route.places.number if route.rows is None else route.rows.number
                return ("routed", route.rows is None, number, value.shape[1:])
        return descriptor_of(value)


def _router_of(index: Tensor) -> Tensor | None:
    """Return the numbers, (rows, entries), of which `topk` chose those of an index, (rows, k)."""
    decision = decision_of(index)
    if decision is None or not decision.is_current or index.dim() != 2:
        return None
    router = decision.args[0]
    return router if router is decision.router and len(router) == len(index) else None
