"""Readings of operators that move entries within each sample alone: neighbours, points, patches.

    x.gather(1, index)          along a dimension that is not the samples'
    x[rows, index]              with constant rows
    x[index + offsets]          of flat rows, where each sample's numbers are those of its own rows
    x[mask] = number            into rows of the samples that the mask is of

Asked by `route_reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.program.argument_outlines import descriptor_of
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.trace.routing.decisions import decision_of
from upslope.gradnorm.trace.routing.indexing import (
    GATHERING,
    items_of,
    move_of,
    takes_own_rows,
    taking_of,
)
from upslope.gradnorm.trace.routing.routed_rows import Places, Reading

_PARTS_OF_INDEX = frozenset({Tensor, int, slice})
"""Types of the parts of an index that stand for one dimension each."""


class MovesWithin:
    """Says of the operators of one pass whether they move entries within each sample alone.

    n: the samples. is_in_front: as of `RouteReader`. places: the tensors of the pass.
    """

    def __init__(self, n: int, is_in_front: Callable[[Tensor], bool], places: Places):
        self._n, self._is_in_front, self._places = n, is_in_front, places

    def read_moving(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[int, str]
    ) -> Reading | None:
        """Read `x.gather(dim, index)` and its like; None if not known.

        name, args, kwargs: the operator and what it gets. kinds: as of `RouteReader.read`.
        """
        move = move_of(name, args, kwargs)
        if move is None:
            return None
        x, dim, index, source = move.x, move.dim, move.index, move.source
        entries = source if isinstance(source, Tensor) else x
        is_routed = any(marks_of(t).route is not None for t in (x, index, entries))
        if is_routed or not (x.dim() == index.dim() == entries.dim() > 1):
            return None
        takes, in_outline = name in GATHERING, tuple(map(descriptor_of, move.options.items()))
        if takes and source is None and kinds[id(x)] == "constant" and kinds[id(index)] == "sample":
            # Numbers of no sample are looked up: the samples are where the index has them.
            return Reading((name, x.shape, index.shape, dim, *in_outline))
        # What is scattered into may be the same for all samples.
        if {kinds[id(index)], kinds[id(entries)]} != {"sample"} or kinds[id(x)] == "weight":
            return None
        if entries is x and not (source is None if takes else type(source) in {int, float}):
            return None
        number = source if entries is x else None
        shapes = x.shape, index.shape, entries.shape
        outline = (name, *shapes, dim, descriptor_of(number), *in_outline)
        along = (dim % x.dim(),)
        reading = self._moving(outline, entries, along)
        # Where a number is source says the index alone, and whose that is, what it was made of.
        router = _router_of(index) if reading is None and entries is x and not takes else None
        return reading if router is None else self._moving((*outline, "chosen"), router, along)

    def read_picking(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], samples: Collection[int]
    ) -> Reading | None:
        """Read what takes entries of each sample: `x[rows, index]`, or `x[index]` of flat rows.

        Constant rows, as `torch.arange(n)[:, None]`, are not for the data to say. Flat rows
        of many samples are taken by `index + offsets`, where each sample's numbers are those of its
        own rows: that is looked at. Returns None if the form is not known.

        name, args, kwargs: the operator and what it gets. samples: the `id`s of tensors that
        depend on samples.
        """
        taking = taking_of(name, args, kwargs)
        if taking is None:
            return None
        x, index = taking
        items = items_of(index)
        tensors = [item for item in items if isinstance(item, Tensor)]
        if any(t.dtype != torch.int64 or marks_of(t).route is not None for t in tensors):
            return None
        if len(items) > x.dim() or not all(type(i) in _PARTS_OF_INDEX for i in items):
            return None
        along = [d for d, i in enumerate(items) if isinstance(i, Tensor) and id(i) in samples]
        outline = (name, x.shape, *_outline_of_items(items, samples))
        if not along or 0 not in along:
            # `x[arange(n), index]` alone has its samples in front whatever the data say.
            constants = [t for t in tensors if id(t) not in samples]
            is_known = any(t.shape == (self._n,) for t in constants)
            return self._moving(outline, x, tuple(along)) if along and not is_known else None
        if len(tensors) > 1 or not takes_own_rows(x, items[0], self._n):
            return None
        if self._is_in_front(x):
            return Reading((*outline, "own rows in front"))
        has_place = x.grad_fn is not None and self._places.is_as_before(x)
        return (
            Reading((*outline, "own rows"), place=x, must_be_in_front=True) if has_place else None
        )

    def read_putting(self, args: Sequence[Any], kinds: Mapping[int, str]) -> Reading | None:
        """Read `x[rows, index] = values`, whose rows are constant; None if not known.

        args: the tensor, the index and the values. kinds: as of `RouteReader.read`.
        """
        target, index, values = args
        items = items_of(index)
        tensors = [t for t in (target, values, *items) if isinstance(t, Tensor)]
        if not isinstance(values, Tensor) or any(marks_of(t).route is not None for t in tensors):
            return None
        if len(items) > target.dim() or not all(type(i) in _PARTS_OF_INDEX for i in items):
            return None
        if any(isinstance(i, Tensor) and i.dtype != torch.int64 for i in items):
            return None
        samples = {key for key, kind in kinds.items() if kind == "sample"}
        along = tuple(d for d, i in enumerate(items) if isinstance(i, Tensor) and id(i) in samples)
        if not along or 0 in along or not values.is_floating_point():
            return None
        is_leaf = target.grad_fn is None and target.requires_grad
        if is_leaf or not (target.requires_grad or values.requires_grad):
            return None
        if not self._places.is_as_before(target):
            return None
        outline = ("put", target.shape, *_outline_of_items(items, samples), values.shape)
        return Reading(outline, place=target, along=along)

    def read_filling(self, args: Sequence[Any], kinds: Mapping[int, str]) -> Reading | None:
        """Read `x[mask] = number` and `x[arange(n), index] = number`; None if not known.

        They write into the rows of those samples that the mask or the index is of.

        args: the tensor, the index and the number. kinds: as of `RouteReader.read`.
        """
        target, index, number = args
        items = items_of(index)
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
        is_place = target.grad_fn is not None and self._places.is_as_before(target)
        return Reading(outline, place=target, must_be_in_front=True) if is_place else None

    def _moving(
        self, outline: tuple[Any, ...], x: Tensor, along: tuple[int, ...]
    ) -> Reading | None:
        """Return the reading of an operator that moves entries of x along some dimensions."""
        # What has no gradient has no samples that a backward pass could show.
        if x.grad_fn is not None and self._places.is_as_before(x):
            return Reading(outline, place=x, along=along)
        is_told = self._is_in_front(x) and 0 not in along
        return Reading((*outline, "in front")) if is_told else None


def _outline_of_items(items: Sequence[Any], samples: Collection[int]) -> tuple[Any, ...]:
    """Return what is noted of the parts of an index: of those of samples their shapes alone."""
    return tuple(tuple(i.shape) if id(i) in samples else descriptor_of(i) for i in items)


def _router_of(index: Tensor) -> Tensor | None:
    """Return the numbers, (rows, entries), of which `topk` chose those of an index, (rows, k)."""
    decision = decision_of(index)
    if decision is None or not decision.is_current or index.dim() != 2:
        return None
    router = decision.args[0]
    return router if router is decision.router and len(router) == len(index) else None
