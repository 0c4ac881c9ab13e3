"""Operators that work on each row of a tensor by itself, whatever the number of rows.

Asked by `routing` of every operator that takes rows which the data have sent somewhere. Not every
operator that works row by row is here: one that is not costs time, one too many would cost the
right numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from upslope.gradnorm.core.torch_functions import ENTRYWISE, ENTRYWISE_BY_SIGN, ENTRYWISE_IN_PLACE

_PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm"})

_ALONG = {
    "softmax": 1, "log_softmax": 1, "sum": 1, "mean": 1, "amax": 1, "amin": 1, "unsqueeze": 1,
    "squeeze": 1, "glu": 1, "chunk": 2, "split": 2, "cat": 1,
}  # fmt: skip
"""Operators along a dimension -> the position of that among their arguments."""


_LENDING = frozenset({"to", "type_as"})
"""Operators whose second tensor lends its type alone."""


def keeps_rows(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    has_rows: Callable[[Tensor], bool],
) -> bool:
    """Whether row i of what an operator makes is made of rows i of those tensors that have rows.

    name, args, kwargs: the operator and what it gets. has_rows: whether a tensor has such rows, in
    dimension 0. All others are the same for any rows.
    """
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.dim() == 0:
        return False
    if name in ENTRYWISE or name in ENTRYWISE_IN_PLACE or name in ENTRYWISE_BY_SIGN:
        return _are_aligned([*args, *kwargs.values()], has_rows, name)
    if name in _PRODUCTS:
        return _is_product(args, kwargs, has_rows)
    if name in _ALONG:
        return _is_along_others(name, args, kwargs, has_rows)
    if name == "layer_norm":
        shape = args[1] if len(args) > 1 else kwargs.get("normalized_shape")
        others = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, Tensor)]
        return (
            isinstance(first, Tensor)
            and isinstance(shape, (tuple, list))
            and len(shape) < first.dim()
            and not any(map(has_rows, others))
        )
    if name == "dropout":
        trains = args[2] if len(args) > 2 else kwargs.get("training", True)
        return trains is False and _are_aligned([*args, *kwargs.values()], has_rows, name)
    if name == "__getitem__" and isinstance(first, Tensor) and has_rows(first):
        return _is_within_rows(first, args[1])
    return False


def _are_aligned(values: Sequence[Any], has_rows: Callable[[Tensor], bool], name: str) -> bool:
    """Whether rows stand beside rows, and nothing else has a dimension beside them."""
    tensors = [x for x in values if isinstance(x, Tensor)]
    rows = [x for x in tensors if has_rows(x)]
    if any(isinstance(x, (tuple, list)) for x in values) or not rows:
        return False
    rank = rows[0].dim()
    if name in _LENDING and not has_rows(tensors[0]):  # rows that only lend their type
        return False
    writes = name in ENTRYWISE_IN_PLACE or name.startswith("__i")
    if writes and not has_rows(tensors[0]):
        return False
    others = [x for x in tensors if not has_rows(x)]
    return all(x.dim() == rank for x in rows) and all(x.dim() < rank for x in others)


def _is_product(
    args: Sequence[Any], kwargs: Mapping[str, Any], has_rows: Callable[[Tensor], bool]
) -> bool:
    """Whether rows are multiplied by a matrix that is the same for all of them."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if len(tensors) < 2 or not isinstance(args[0], Tensor) or tensors[0] is not args[0]:
        return False
    x, matrix, *others = tensors
    small = all(t.dim() == 1 for t in others)
    is_of_rows = has_rows(x) and not any(map(has_rows, (matrix, *others)))
    return is_of_rows and x.dim() >= 2 and matrix.dim() == 2 and small


def _is_along_others(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], has_rows: Callable[[Tensor], bool]
) -> bool:
    """Whether an operator goes along dimensions that are not that of the rows."""
    position = _ALONG[name]
    if name == "cat":
        tensors = list(args[0]) if args and isinstance(args[0], (tuple, list)) else []
    else:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if len(tensors) != 1:
            return False
    whole = tensors and all(isinstance(t, Tensor) and has_rows(t) for t in tensors)
    dim = args[position] if len(args) > position else kwargs.get("dim")
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not whole or not dims or not all(type(d) is int for d in dims):
        return False
    rank = tensors[0].dim() + (name == "unsqueeze")
    # Sections may be a list of sizes, which a number of rows is not among.
    return all(t.dim() == tensors[0].dim() for t in tensors) and all(d % rank for d in dims)


def _is_within_rows(rows: Tensor, index: Any) -> bool:
    """Whether an index takes all rows, and of each the same entries."""
    items = index if isinstance(index, tuple) else (index,)
    plain = all(
        x is None or x is Ellipsis or type(x) is int or (
            isinstance(x, slice)
            and all(part is None or type(part) is int for part in (x.start, x.stop, x.step))
        )
        for x in items
    )  # fmt: skip
    if not plain or not items:
        return False
    if items[0] is Ellipsis:  # with it, as many as there are dimensions leave the first alone
        return sum(x is not None for x in items) <= rows.dim()
    return isinstance(items[0], slice) and items[0] == slice(None)
