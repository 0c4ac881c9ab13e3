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
        along = _dimensions_by_samples(items, samples)
        if not along or not _is_index_of(x, items):
            return None
        outline = (name, x.shape, *_outline_of_items(items, samples))
        if 0 not in along:
            # `x[arange(n), index]` alone has its samples in front whatever the data say.
            constants = [t for t in tensors if id(t) not in samples]
            is_known = any(t.shape == (self._n,) for t in constants)
            return None if is_known else self._moving(outline, x, along)
        if len(tensors) > 1 or not takes_own_rows(x, items[0], self._n):
            return None
        if self._is_in_front(x):
            return Reading((*outline, "own rows in front"))
        if not self._shows_places(x):
            return None
        return Reading((*outline, "own rows"), place=x, must_be_in_front=True)

    def read_putting(self, args: Sequence[Any], kinds: Mapping[int, str]) -> Reading | None:
        """Read `x[rows, index] = values`, whose rows are constant; None if not known.

        args: the tensor, the index and the values. kinds: as of `RouteReader.read`.
        """
        target, index, values = args
        items = items_of(index)
        samples = {key for key, kind in kinds.items() if kind == "sample"}
        along = _dimensions_by_samples(items, samples)
        if not along or 0 in along or not _is_index_of(target, items):
            return None
        if not _shows_gradient(target, values) or not self._places.is_as_before(target):
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
        if items[0] is of_samples[0]:
            fills = len(items) == 1 and _is_mask_of_rows(target, items[0])
        else:
            fills = self._is_entry_of_each(target, items, of_samples)
        if not fills:
            return None
        outline = ("filled", target.shape, descriptor_of(index), descriptor_of(number))
        if kinds[id(target)] == "constant" or self._is_in_front(target):
            return Reading((*outline, "in front"), fills=target)
        if not self._shows_places(target):
            return None
        return Reading(outline, place=target, must_be_in_front=True)

    def _is_entry_of_each(
        self, target: Tensor, items: Sequence[Any], of_samples: Sequence[Tensor]
    ) -> bool:
        """Whether an index is that of one entry in the row of each sample: `[arange(n), index]`.

        target: of n rows. items: the parts of the index. of_samples: those made of samples.
        """
        first, n = items[0], self._n
        if len(target) != n or not all(isinstance(t, Tensor) for t in items):
            return False
        has_own_rows = len(of_samples) == len(items) - 1 and torch.equal(first, torch.arange(n))
        return has_own_rows and all(t.shape == (n,) for t in of_samples)

    def _shows_places(self, x: Tensor) -> bool:
        """Whether a backward pass can show whose the entries of x are, as they are now."""
        return x.grad_fn is not None and self._places.is_as_before(x)

    def _moving(
        self, outline: tuple[Any, ...], x: Tensor, along: tuple[int, ...]
    ) -> Reading | None:
        """Return the reading of an operator that moves entries of x along some dimensions."""
        # What has no gradient has no samples that a backward pass could show.
        if self._shows_places(x):
            return Reading(outline, place=x, along=along)
        is_told = self._is_in_front(x) and 0 not in along
        return Reading((*outline, "in front")) if is_told else None


def _is_index_of(x: Tensor, items: Sequence[Any]) -> bool:
    """Whether whole numbers, slices and numbers of Python are all that an index is made of.

    None of it, nor x, may be sent somewhere by the data. items: the parts of the index.
    """
    tensors = [item for item in items if isinstance(item, Tensor)]
    is_plain = len(items) <= x.dim() and all(type(i) in _PARTS_OF_INDEX for i in items)
    are_whole = all(t.dtype == torch.int64 for t in tensors)
    return is_plain and are_whole and all(marks_of(t).route is None for t in (x, *tensors))


def _dimensions_by_samples(items: Sequence[Any], samples: Collection[int]) -> tuple[int, ...]:
    """Return the dimensions along which numbers of samples say which entries are meant.

    items: the parts of an index, one for each dimension. samples: as of `read_picking`.
    """
    return tuple(d for d, i in enumerate(items) if isinstance(i, Tensor) and id(i) in samples)


def _shows_gradient(target: Tensor, values: Any) -> bool:
    """Whether a gradient shows whose the entries are once values were put into a target."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        return False
    is_leaf = target.grad_fn is None and target.requires_grad
    is_routed = marks_of(values).route is not None
    return not (is_leaf or is_routed) and (target.requires_grad or values.requires_grad)


def _is_mask_of_rows(target: Tensor, index: Tensor) -> bool:
    return index.dtype == torch.bool and len(index) == len(target)


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
