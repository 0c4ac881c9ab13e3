"""Decisions of a router for all samples together, and those for each sample alone.

A loop over the experts that some row has chosen (`for expert in hit.nonzero():`) is steered by all
samples. Whether it would be another one for a sample alone follows from the numbers of that
sample's rows, by the same operators: the few that lead from a router's numbers to whole numbers are
noted, and run again for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.tensor_marks import mark, marks_of

_CHOOSING = frozenset({"topk", "argmax"})
"""Operators that make whole numbers of a router's numbers."""

_MOST_NUMBERS = 1 << 18
"""Numbers of a tensor that is kept for this until the batch is done."""


class Decision(NamedTuple):
    """How whole numbers were made of a tensor: by an operator that takes nothing else but numbers.

    place: which of its outputs they are, if there are several. version, version_before: of them,
    and of the tensor that they are made of, by which it is told that either was written since.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | None
    version: int
    version_before: int

    @property
    def is_current(self) -> bool:
        """Whether nothing was written into what it was made of."""
        before: Decision | None = marks_of(self.args[0]).decision
        unwritten: bool = self.args[0]._version == self.version_before
        return unwritten and (before is None or before.is_current)

    @property
    def router(self) -> Tensor:
        """The numbers that all of it began with."""
        first: Tensor = self.args[0]
        before: Decision | None = marks_of(first).decision
        return first if before is None else before.router

    def of(self, rows: Tensor) -> Tensor:
        """Return what is decided on other numbers of the router. rows: some of its rows."""
        before = marks_of(self.args[0]).decision
        first = rows if before is None else before.of(rows)
        out = self.func(first, *self.args[1:], **self.kwargs)
        numbers: Tensor = out if self.place is None else out[self.place]
        return numbers


def note_decision(
    func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> None:
    """Take note of an operator of `operators.DECIDING`, if it makes whole numbers of a router's.

    func, name, args, kwargs: the operator and what it got. out: what it has made.
    """
    first = args[0] if args else None
    if not isinstance(first, Tensor) or first.numel() > _MOST_NUMBERS:
        return
    if name in _CHOOSING:
        # Along its rows alone, of a tensor of rows: those of a sample alone choose the same.
        if first.dim() != 2 or not first.is_floating_point() or not _goes_along_rows(args, kwargs):
            return
    elif decision_of(first) is None:
        return
    if any(isinstance(x, Tensor) for x in (*args[1:], *kwargs.values())):
        return
    place = 1 if name == "topk" else None
    numbers = out if place is None else out[place]
    if isinstance(numbers, Tensor) and numbers is not first:
        versions = numbers._version, first._version
        mark(numbers).decision = Decision(func, args, dict(kwargs), place, *versions)


def decision_of(tensor: Tensor) -> Decision | None:
    """Return how whole numbers were made of a router's; None where it is not known."""
    decision: Decision | None = marks_of(tensor).decision
    return decision if decision is not None and decision.version == tensor._version else None


def _goes_along_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether `topk` or `argmax` of a matrix goes along the entries of each row."""
    position = 2 if len(args) > 2 else 1
    dim = kwargs.get("dim", args[position] if len(args) > position else -1)
    is_topk = "k" in kwargs or len(args) > 1
    return (is_topk or "dim" in kwargs) and dim in (-1, 1)


def decided_alone(table: Decision, rows_of_samples: Tensor) -> list[str] | None:
    """Return what a loop would go through for each sample alone, as text; None if not known.

    table: how the mask was made whose places it goes through. rows_of_samples: (n, k, ...), the
    router's numbers.
    """
    texts = []
    with torch.no_grad():
        for rows in rows_of_samples:
            # An operator that was given a size of the whole batch does not take fewer rows.
            try:
                texts.append(repr(table.of(rows).nonzero().tolist()))
            except (RuntimeError, TypeError, ValueError):
                return None
    return texts
