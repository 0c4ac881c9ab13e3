"""Operators that take, put or move entries by an index: their names, and what they get.

Read by `route_reader` and its parts, and by `rows_in_front`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TAKING = frozenset({"__getitem__", "index_select"})
"""Operators that take rows of their first tensor by their last argument."""

PUTTING = frozenset({"__setitem__", "index_add", "index_add_"})
GATHERING = frozenset({"gather", "take_along_dim"})
MOVING_WITHIN = GATHERING | frozenset(
    {"scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"}
)
"""Operators that move entries along one dimension, by an index for each of the others."""


@dataclass(frozen=True, slots=True)
class Move:
    """What an operator of `MOVING_WITHIN` gets."""

    x: Tensor
    """What is gathered from, or scattered into."""
    dim: int
    """The dimension along which entries move."""
    index: Tensor
    source: Any
    """What is scattered: a tensor, or a number; None where entries are gathered."""
    options: dict[str, Any]
    """All other arguments, by name."""


def move_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Move | None:
    """Return what an operator of `MOVING_WITHIN` gets; None for forms that are not known."""
    order = ("input", "index", "dim") if name == "take_along_dim" else ("input", "dim", "index")
    arguments = dict(zip((*order, "src", "reduce"), args, strict=False)) | dict(kwargs)
    if "indices" in arguments:
        arguments["index"] = arguments.pop("indices")
    x, dim, index = (arguments.pop(key, None) for key in ("input", "dim", "index"))
    if not (isinstance(x, Tensor) and isinstance(index, Tensor) and type(dim) is int):
        return None
    return Move(x, dim, index, arguments.pop("src", arguments.pop("value", None)), arguments)


def taking_of(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Any] | None:
    """Return what entries are taken from, and by which index of its first dimensions.

    None for operators other than those of `TAKING`, and for forms that are not known.
    """
    if name not in TAKING or kwargs or not args or not isinstance(args[0], Tensor):
        return None
    if name == "index_select" and (len(args) != 3 or args[1] != 0):
        return None
    return args[0], args[-1]


def indices_within(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the indices by which an operator moves entries within the rows of a tensor."""
    if name in MOVING_WITHIN:
        move = move_of(name, args, kwargs)
        return [] if move is None or move.index.dtype != torch.int64 else [move.index]
    if name not in {"__getitem__", "__setitem__"} or not isinstance(args[0], Tensor):
        return []
    items = items_of(args[1])[1:]
    return [i for i in items if isinstance(i, Tensor) and i.dtype == torch.int64]


def items_of(index: Any) -> tuple[Any, ...]:
    """Return the parts of an index, each of one dimension or more."""
    return index if isinstance(index, tuple) else (index,)


def takes_own_rows(x: Tensor, index: Tensor, n: int) -> bool:
    """Return whether an index takes for each sample rows of its own.

    x: (r, ...), of n samples in front. index: (k, ...), whose first k / n numbers are those of the
    rows of the first sample, and so on.
    """
    if index.dtype != torch.int64 or not (x.dim() and index.dim() and len(x)):
        return False
    if len(x) % n or len(index) % n or not index.numel():
        return False
    # Negative numbers count from the end.
    owners = (index.detach() % len(x)).reshape(n, -1).div(len(x) // n, rounding_mode="floor")
    return bool((owners == torch.arange(n, device=owners.device)[:, None]).all())
