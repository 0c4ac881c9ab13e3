"""Data of the readings of routed rows: what is noted of indices, of rows and of operators.

Made by `route_reader` and its parts (`row_groups`, `moves_within`), kept by `routing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.program.argument_outlines import descriptor_of
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.trace.routing.decisions import Decision


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

    @property
    def is_empty(self) -> bool:
        """Whether there are no rows: what is done with some of them no such batch has shown."""
        return len(self.index) == 0


@dataclass(eq=False, slots=True)
class Route:
    """The mark of a tensor that is as long as the data have it: in dimension 0, if not wrapped.

    One of three: rows of a group; places, as an index of one dimension or a table (count,
    dimensions); or rows that are wrapped, (1, rows, ...), as in `x[None, index]`.
    """

    rows: RowGroup | None = None
    places: Choice | None = None
    wrapped: RowGroup | None = None

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor is as long as it must be."""
        if self.places is not None:
            return tensor.shape[:1] == (self.places.count,)
        if self.wrapped is not None:
            return tensor.shape[:2] == (1, len(self.wrapped.index))
        return self.rows is not None and tensor.shape[:1] == (len(self.rows.index),)


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


def outline_of_rows(value: Any) -> Any:
    """Return what is noted of an argument: the same for any number of routed rows."""
    if isinstance(value, (tuple, list)):
        return tuple(map(outline_of_rows, value))
    if isinstance(value, Tensor):
        route = marks_of(value).route
        if route is not None:
            whose = route.rows or route.wrapped or route.places
            return ("routed", type(whose).__name__, whose.number, value.shape[1:])
    return descriptor_of(value)
