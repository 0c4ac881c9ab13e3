"""Readings of operators that take rows by an index of the data's making, and put them back.

    taken = x[row]                                  # or x[None, row].reshape(-1, width)
    out.index_add_(0, row, made_of_taken)

Asked by `route_reader`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.program.argument_outlines import descriptor_of
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.trace.routing.indexing import items_of, taking_of
from upslope.gradnorm.trace.routing.routed_rows import (
    Places,
    Reading,
    Route,
    RowGroup,
    outline_of_rows,
)


class RowGroups:
    """The groups of rows of one pass, one for each index. places: the tensors of the pass."""

    def __init__(self, places: Places):
        self._places = places
        self.all: list[RowGroup] = []
        self._by_key: dict[int, RowGroup] = {}

    def read_taking(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], samples: Collection[int]
    ) -> Reading | None:
        """Read `x[index]`, `x[None, index]` and `index_select(x, 0, index)`; None if not known.

        The index may be a mask.

        name, args, kwargs: the operator and what it gets. samples: the `id`s of tensors that
        depend on samples.
        """
        taking = taking_of(name, args, kwargs)
        if taking is None:
            return None
        source, index = taking
        # A plane of a mask, taken by one number: no entry with a gradient goes anywhere.
        whole = not source.is_floating_point() and not source.is_complex()
        if whole and isinstance(index, Tensor) and index.numel() == 1 and id(index) in samples:
            if index.dtype != torch.int64 or marks_of(index).route is not None:
                return None
            return Reading((name, descriptor_of(source), "one", index.dim()))
        # A parameter, whose rows are those of no sample, is no place of samples.
        if whole or source.dim() == 0 or (source.grad_fn is None and source.requires_grad):
            return None
        items = items_of(index)
        is_wrapped = len(items) > 1 and items[0] is None
        group_and_rank = self._index(source, items[1:] if is_wrapped else items, samples)
        if group_and_rank is None or not self._places.is_as_before(source):
            return None
        group, _ = group_and_rank
        # Of what is done with rows, a batch that has none of them has shown nothing.
        outline = (name, source.shape, outline_of_rows(index), group.number, group.is_empty)
        route = Route(wrapped=group) if is_wrapped else Route(rows=group)
        return Reading(outline, route, group, source)

    def read_putting(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Reading | None:
        """Read `out[index] = rows` and `out.index_add_(0, index, rows)`; None if not known.

        name, args, kwargs: the operator and what it gets.
        """
        if kwargs or len(args) != (3 if name == "__setitem__" else 4):
            return None
        target, index, rows = args[0], args[-2], args[-1]
        if not (isinstance(target, Tensor) and isinstance(rows, Tensor)) or not target.dim():
            return None
        of_rows, of_target = marks_of(rows).route, marks_of(target).route
        if of_rows is None or of_rows.rows is None or of_target is not None:
            return None
        is_leaf = target.grad_fn is None and target.requires_grad
        if not target.is_floating_point() or is_leaf or not self._places.is_as_before(target):
            return None
        group = of_rows.rows
        if name == "__setitem__":
            # Rows of fewer dimensions than their places would be spread along others.
            if self._index(target, index, {id(group.key)}) != (group, rows.dim()):
                return None
        else:
            same = isinstance(index, Tensor) and self._by_key.get(id(index)) is group
            if not same or index._version != group.version or index.dtype == torch.bool:
                return None
            if args[1] != 0 or rows.dim() != target.dim():
                return None
        outline = (name, target.shape, outline_of_rows(index), group.number, rows.shape[1:])
        return Reading(outline, None, group, target, makes_place=name == "index_add")

    def _group_of(self, key: Tensor, *, is_mask: bool = False) -> RowGroup:
        """Return the group of the rows that an index takes, or a mask."""
        group = self._by_key.get(id(key))
        # An index that the model has written into since takes other rows.
        if group is None or group.version != key._version:
            index = key.nonzero()[:, 0] if is_mask else key.detach().clone()
            group = RowGroup(len(self.all), key, key._version, index)
            self.all.append(group)
            self._by_key[id(key)] = group
        return group

    def _index(
        self, tensor: Tensor, index: Any, samples: Collection[int]
    ) -> tuple[RowGroup, int] | None:
        """Return the group that an index takes rows of, and the dimensions of what it takes."""
        items = items_of(index)
        first, count = (items[0] if items else None), 0
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
