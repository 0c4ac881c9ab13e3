"""Decisions of a router for all samples together, and those for each sample alone.

A loop over the experts that some row has chosen (`for expert in hit.nonzero():`) is steered by all
samples, and so is a question whether any row has chosen one (`if mask.any():`). Whether it would be
another one for a sample alone follows from the numbers of that sample's rows, by the same
operators: the few that lead from a router's numbers to whole numbers are noted, and run again for
each sample. Those of which an expert has no room left are among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.tensor_marks import mark, marks_of

_CHOOSING = {"topk": (2, 1), "argmax": (1, None), "max": (1, 1)}
"""Operator that makes whole numbers of a router's numbers -> the place of the dimension among its
arguments, and that of the whole numbers among its outputs, if there are several."""

_RESHAPING = frozenset({"view", "reshape"})
"""Operators that are given sizes, which may be those of the batch."""

_MOST_NUMBERS = 1 << 18
"""Numbers of a tensor that is kept for this until the batch is done."""


class Decision(NamedTuple):
    """How whole numbers were made of a router's: by an operator on decisions, and on numbers.

    args: tensors among them are the router's numbers, or decisions upon these. place: which of the
    operator's outputs they are, if there are several. version, versions_before: of them, and of the
    tensors that they are made of, by which it is told that one was written since.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | None
    router: Tensor
    """The numbers that all of it began with."""
    version: int
    versions_before: tuple[int, ...]

    @property
    def is_current(self) -> bool:
        """Whether nothing was written into what it was made of."""
        tensors = [x for x in self.args if isinstance(x, Tensor)]
        if tuple(x._version for x in tensors) != self.versions_before:
            return False
        before: list[Decision | None] = [marks_of(x).decision for x in tensors]
        return all(decision is None or decision.is_current for decision in before)

    def of(self, rows: Tensor, numbers_for: dict[int, Tensor] | None = None) -> Tensor:
        """Return what is decided on other numbers of the router.

        rows: some of its rows. numbers_for: `id` of a tensor -> what is decided in its place.
        """
        numbers_for = {id(self.router): rows} if numbers_for is None else numbers_for
        args = []
        for x in self.args:
            if isinstance(x, Tensor) and id(x) not in numbers_for:
                numbers_for[id(x)] = marks_of(x).decision.of(rows, numbers_for)
            args.append(numbers_for[id(x)] if isinstance(x, Tensor) else x)
        out = self.func(*args, **self.kwargs)
        numbers: Tensor = out if self.place is None else out[self.place]
        return numbers


def note_decision(
    func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> None:
    """Take note of an operator that may decide (`operator_facts`), on a router's numbers.

    func, name, args, kwargs: the operator and what it got. out: what it has made.
    """
    router = _router_behind(name, args, kwargs)
    if router is None or args[0].numel() > _MOST_NUMBERS:
        return
    if name in _RESHAPING and not _joins_rows(args[0], args[1:], kwargs):
        return
    _, place = _CHOOSING.get(name, (0, None))
    numbers = out if place is None else out[place]
    if isinstance(numbers, Tensor) and not any(numbers is x for x in args):
        versions = tuple(x._version for x in args if isinstance(x, Tensor))
        mark(numbers).decision = Decision(
            func, args, dict(kwargs), place, router, numbers._version, versions
        )


def _router_behind(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the router's numbers that all tensors of an operator are made of; None if not of one.

    Arguments as of `note_decision`.
    """
    first = args[0] if args else None
    if not isinstance(first, Tensor):
        return None
    router: Tensor | None = None
    if name in _CHOOSING:
        # Along its rows alone, of a tensor of rows: those of a sample alone choose the same.
        has_rows = first.dim() >= 2 and first.is_floating_point()
        router = first if has_rows and _goes_along_rows(name, args, kwargs) else None
    elif (before := decision_of(first)) is not None:
        router = before.router
    if router is None or any(isinstance(x, Tensor) for x in kwargs.values()):
        return None
    others = [decision_of(x) for x in args[1:] if isinstance(x, Tensor)]
    return router if all(d is not None and d.router is router for d in others) else None


def decision_of(tensor: Tensor) -> Decision | None:
    """Return how whole numbers were made of a router's; None where it is not known."""
    decision: Decision | None = marks_of(tensor).decision
    return decision if decision is not None and decision.version == tensor._version else None


def _goes_along_rows(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator of `_CHOOSING` goes along the entries of each row."""
    position, _ = _CHOOSING[name]
    by_default = -1 if name == "topk" else None  # the others then go over all rows
    dim = kwargs.get("dim", args[position] if len(args) > position else by_default)
    return type(dim) is int and dim in (-1, args[0].dim() - 1)


def _joins_rows(first: Tensor, sizes: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a tensor gets a shape whose sizes are its own last ones, behind as many as it has."""
    if kwargs or not sizes:
        return False
    sizes = tuple(sizes[0]) if isinstance(sizes[0], (tuple, list)) else sizes
    last = [size for size in sizes[1:] if size != 1]
    before = [size for size in first.shape if size != 1]
    return sizes[0] == -1 and last == before[len(before) - len(last) :]


def decided_alone(
    decision: Decision, rows_of_samples: Tensor, text_of: Callable[[Tensor], str]
) -> list[str] | None:
    """Return what would steer the model for each sample alone, as text; None if not known.

    decision: how that was made of the router's numbers. rows_of_samples: (n, k, ...), these.
    text_of: from what is decided to text.
    """
    texts = []
    with torch.no_grad():
        for rows in rows_of_samples:
            # An operator that was given a size of the whole batch does not take fewer rows.
            try:
                texts.append(text_of(decision.of(rows)))
            except (RuntimeError, TypeError, ValueError):
                return None
    return texts
