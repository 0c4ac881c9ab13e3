"""Tensors without a gradient that have each sample's entries together in dimension 0.

Points, patches and indices are moved about before any weight is met: neighbours are gathered,
distances sorted. Of what has no gradient no backward pass can show where its samples are. But the
inputs have them in front, and most operators leave them there, whatever the numbers. So inputs are
marked, and what these operators make of marked tensors is marked in turn: of r rows, the first
r / n are made of the first sample alone, and so on. Asked by `operator_runs`; the marks are read by
`moves_within`.

An operator that is not written down here costs time, not the right numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from upslope.gradnorm.core.torch_functions import ENTRYWISE, ENTRYWISE_BY_SIGN, ENTRYWISE_IN_PLACE
from upslope.gradnorm.trace.operators import tensors_of
from upslope.gradnorm.trace.routing.indexing import (
    GATHERING,
    items_of,
    move_of,
    takes_own_rows,
    taking_of,
)

_COMPARING = frozenset(
    {"where", "masked_fill", "bitwise_and", "bitwise_or", "logical_and", "logical_not",
     "logical_or", "isfinite", "isnan", "__invert__", "__and__", "__or__", "bool", "int", "long"}
    | {form for name in ("eq", "ge", "gt", "le", "lt", "ne") for form in (name, f"__{name}__")}
)  # fmt: skip

_BY_ENTRY = ENTRYWISE | ENTRYWISE_IN_PLACE | ENTRYWISE_BY_SIGN | _COMPARING

_FILLING = frozenset({"zeros_like", "ones_like", "full_like"})
"""Operators that make a tensor in the shape of another, the same in all entries."""

_RESHAPING = frozenset({"view", "reshape", "flatten", "unflatten"})
"""Operators that leave the entries in their order."""

_KEEPING_FRONT = frozenset({"expand", "repeat", "squeeze", "tile"})
"""Operators that leave the rows where they are, if there are as many afterwards."""

_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "linear", "cdist"})

_ALONG: Mapping[str, tuple[int, int | None]] = {
    "topk": (2, -1), "sort": (1, -1), "argsort": (1, -1), "softmax": (1, None), "sum": (1, None),
    "mean": (1, None), "max": (1, None), "min": (1, None), "argmax": (1, None),
    "argmin": (1, None), "amax": (1, None), "amin": (1, None), "norm": (2, None),
    "cumsum": (1, None), "unsqueeze": (1, None), "chunk": (2, 0), "split": (2, 0),
    "unbind": (1, 0), "cat": (1, 0), "transpose": (1, None), "movedim": (1, None),
    "all": (1, None), "any": (1, None), "flip": (1, None),
}  # fmt: skip
"""Operator along dimensions -> the place of these among its arguments, and their default."""

_WITHOUT_ARRAYS = frozenset({slice, int, type(None), type(...)})
"""Types of the parts of an index that are no arrays."""

_OPTIONS = frozenset({"dim", "keepdim", "k", "largest", "sorted", "descending", "stable", "dtype"})
"""The options of these that are known by name."""


def keeps_in_front(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    out: Sequence[Tensor],
    is_in_front: Callable[[Tensor], bool],
    is_constant: Callable[[Tensor], bool],
    n: int,
) -> bool:
    """Return whether what an operator has made has the samples' entries in front.

    name, args, kwargs: the operator and what it got. out: the tensors that it made. is_in_front:
    whether a tensor is known to have the samples' entries in front. is_constant: whether one
    depends on no sample. n: the samples.
    """
    tensors = tensors_of((*args, *kwargs.values()))
    # A loop over steps or windows asks of each; rows that stay are as many as before.
    if len(tensors) == 1 and args and tensors[0] is args[0]:
        if name == "__getitem__":
            return _takes_within_rows(args[1]) and is_in_front(args[0])
        if name in _BY_ENTRY and name != "where" and len(out) == 1:
            return _has_as_many_rows(args[0], out[0], n) and is_in_front(args[0])
    rows = [t for t in tensors if is_in_front(t)]
    if not (rows and out) or "out" in kwargs:
        return False
    if any(t.dim() == 0 or not len(t) or len(t) % n for t in out):
        return False
    if args and isinstance(args[0], Tensor):
        takes = _takes_in_front(name, args, kwargs, tensors, rows, out[0], is_constant, n)
        if takes is not None:
            return takes
    if not all(is_in_front(t) or is_constant(t) for t in tensors):
        return False
    return _leaves_in_front(name, args, kwargs, tensors, rows, out[0])


def _takes_in_front(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    tensors: Sequence[Tensor],
    rows: Sequence[Tensor],
    out: Tensor,
    is_constant: Callable[[Tensor], bool],
    n: int,
) -> bool | None:
    """Whether what an operator takes by indices has the samples in front; None if it takes none.

    tensors: of the arguments, of which the first is one. rows: those with the samples in front.
    The others are as of `keeps_in_front`.
    """
    first = args[0]
    if name in GATHERING and is_constant(first):
        return len(rows) == 1 and len(tensors) == 2 and len(out) == len(rows[0])
    if first is not rows[0]:
        return None
    if name in GATHERING:
        move = move_of(name, args, kwargs)
        return move is not None and move.dim % first.dim() != 0 and len(out) == len(first)
    taking = taking_of(name, args, kwargs)
    items = () if taking is None else items_of(taking[1])
    if items and isinstance(items[0], Tensor):
        return _takes_own_rows_in_order(first, items, out, n)
    return None


def _leaves_in_front(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    tensors: Sequence[Tensor],
    rows: Sequence[Tensor],
    out: Tensor,
) -> bool:
    """Whether an operator on rows and constants leaves the rows where they are.

    Arguments as of `_takes_in_front`.
    """
    is_alone = len(tensors) == 1
    if name in _BY_ENTRY:
        is_told = name == "where" and is_alone  # which tells where a mask is true
        return not is_told and all(t.dim() == out.dim() and len(t) == len(out) for t in rows)
    if name in _RESHAPING or name in _FILLING:
        return is_alone
    if name in _KEEPING_FRONT:
        is_of_rank = name == "squeeze" or out.dim() == rows[0].dim()
        return is_alone and len(out) == len(rows[0]) and is_of_rank
    if name in _PRODUCTS:
        return _are_products_of_rows(tensors, rows, out)
    if name == "permute":
        dims = args[1:] if len(args) > 2 else args[1] if len(args) == 2 else kwargs.get("dims")
        return isinstance(dims, (tuple, list)) and dims[0] % len(dims) == 0
    if name == "__getitem__":
        return args[0] is rows[0] and _takes_within_rows(args[1])
    return name in _ALONG and _is_along_others(name, args, kwargs, tensors)


def _has_as_many_rows(x: Tensor, out: Tensor, n: int) -> bool:
    """Whether a result has the dimensions of x and as many rows, of n samples."""
    return 0 < out.dim() == x.dim() and 0 < len(out) == len(x) and len(out) % n == 0


def _takes_own_rows_in_order(x: Tensor, items: Sequence[Any], out: Tensor, n: int) -> bool:
    """Whether the first part of an index takes for each sample its own rows, which stay in front.

    items: the parts of the index. out: what it takes of x.
    """
    first = items[0]
    is_aligned = len(first) == len(out) and all(i.dim() <= first.dim() for i in tensors_of(items))
    return is_aligned and takes_own_rows(x, first, n)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], name: str, place: int) -> Any:
    """Return an argument by its name, or by its place."""
    return args[place] if len(args) > place else kwargs.get(name)


def _are_products_of_rows(tensors: Sequence[Tensor], rows: Sequence[Tensor], out: Tensor) -> bool:
    """Whether each row of what came out is a product, or distances, of rows in its place."""
    others = [t for t in tensors if not any(t is row for row in rows)]
    are_aligned = all(t.dim() == out.dim() and len(t) == len(out) for t in rows)
    return out.dim() >= 3 and are_aligned and all(t.dim() <= 2 for t in others)


def _takes_within_rows(index: Any) -> bool:
    """Whether an index takes entries of all rows, and leaves the rows in their places."""
    items = index if isinstance(index, tuple) else (index,)
    if not items or type(items[0]) is not slice or items[0] != slice(None):
        return False
    types = [type(item) for item in items]
    if _WITHOUT_ARRAYS.issuperset(types):
        return True
    # Several arrays of numbers that stand apart from each other would come to the front.
    return types.count(Tensor) == 1 and types.count(slice) == len(types) - 1


def _is_along_others(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> bool:
    """Whether an operator goes along dimensions that are not the first."""
    place, default = _ALONG[name]
    if name == "cat":
        are_alike = all(t.dim() == tensors[0].dim() for t in tensors)
    else:
        are_alike = len(tensors) == 1
    if name in {"transpose", "movedim", "flip"}:
        dims: Any = (*args[1:], *kwargs.values())
        if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
            (dims,) = dims
    elif not _OPTIONS.issuperset(kwargs):
        return False
    else:
        dims = _argument(args, kwargs, "dim", place)
        dims = default if dims is None else dims
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    rank = tensors[0].dim() + (name == "unsqueeze")
    return are_alike and all(type(dim) is int and dim % rank for dim in dims) and bool(dims)
