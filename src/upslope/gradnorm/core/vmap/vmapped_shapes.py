"""Rules for operators that name dimensions, sizes or places of one row.

Sums along a dimension, views, transposes and indices say by number what they act on. With the rows
in dimension 0, each number counts one dimension further. Looked up by `vmapped_operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.vmap.vmapped_rows import Rows, Rule


def _shift(dim: Any, rank: int) -> Any:
    """Return a dimension of a row as one of a tensor with rows; None where it is none."""
    # What counts from the back counts the same, but must not come to the rows.
    if type(dim) is not int or not -rank <= dim < rank:
        return None
    return dim + 1 if dim >= 0 else dim


def _along(*positions: int, default: Any = None, more: int = 0) -> Rule:
    """Return the rule of an operator along dimensions of its first argument.

    positions: where they are among the arguments; if there is one, it may be a tuple of dimensions,
    and go by the name of `dim`. default: what they are if they are left out; "all" for all of them.
    more: how many dimensions the result has beside those of the input.
    """

    def rule(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
        first: Any = args[0] if args else None
        several = isinstance(first, (tuple, list))  # tensors to be joined
        tensors: list[Any] = list(first) if several else [first]
        if not tensors or not all(isinstance(x, Tensor) for x in tensors):
            return NotImplemented
        if any(rows.has(x) for x in (*args[1:], *kwargs.values())):
            return NotImplemented
        ranks = {rows.rank(x) for x in tensors}
        rank = ranks.pop() + more
        if ranks or rank == 0:
            return NotImplemented
        args, kwargs = list(args), dict(kwargs)
        if several:
            # What has no rows is joined to each of them.
            args[0] = [x if rows.has(x) else x.expand(rows.count, *x.shape) for x in tensors]
        for position in positions:
            if len(args) > position:
                dims = args[position]
            elif len(positions) == 1:
                dims = kwargs.pop("dim", kwargs.pop("axis", default))
            else:
                return NotImplemented
            if dims == "all" or (dims is None and default == "all"):
                dims = tuple(range(rank))
            is_one = not isinstance(dims, (tuple, list))
            new_dims = [_shift(dim, rank) for dim in ((dims,) if is_one else dims)]
            if None in new_dims or not new_dims:
                return NotImplemented
            value = new_dims[0] if is_one else tuple(new_dims)
            if len(args) > position:
                args[position] = value
            else:
                kwargs["dim"] = value
        return func(*args, **kwargs)

    return rule


def _sizes(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """`view`, `reshape`, `expand`: the rows stay, and each takes the shape."""
    if kwargs or len(args) < 2 or not rows.is_first_alone(args, kwargs):
        return NotImplemented
    sizes = args[1:]
    if isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    if not all(isinstance(size, int) for size in sizes):
        return NotImplemented
    # Only to expand adds dimensions in front, behind that of the rows.
    tensor = rows.lift(args[0], len(sizes)) if func.__name__ == "expand" else args[0]
    return func(tensor, (rows.count, *sizes))


def _flatten(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("start_dim", "end_dim")
    if len(args) > 3 or not set(kwargs) <= set(names) or not rows.has(args[0]):
        return NotImplemented
    rank = rows.rank(args[0])
    by_name = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    ends = [_shift(by_name.get(name, end), rank) for name, end in zip(names, (0, -1), strict=True)]
    return NotImplemented if None in ends else func(args[0], *ends)


def _permute(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs or len(args) < 2 or not rows.has(args[0]):
        return NotImplemented
    dims = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
    new_dims = [_shift(dim, rows.rank(args[0])) for dim in dims]
    return NotImplemented if None in new_dims else func(args[0], (0, *new_dims))


def _t(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
    """`t()`, `T` and `mT` of matrices."""
    return args[0].transpose(1, 2) if rows.rank(args[0]) == 2 else NotImplemented


def _take(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
    """`tensor[index]`: of each row the same entries; or of one table, what each row says."""
    tensor, index = args
    if not rows.has(tensor):  # a table, of which each row takes entries
        is_index = rows.has(index) and not index.is_floating_point() and index.dtype != torch.bool
        return func(tensor, index) if is_index else NotImplemented
    items = index if isinstance(index, tuple) else (index,)
    plain = (int, slice, type(None), type(...))
    by_tensor = [x for x in items if isinstance(x, Tensor)]
    if len(by_tensor) > 1 or any(map(rows.has, by_tensor)):
        return NotImplemented
    if not all(type(x) in plain for x in items if not isinstance(x, Tensor)):
        return NotImplemented
    return func(tensor, (slice(None), *items))


SHAPE_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("softmax", "log_softmax", "argmax", "argmin", "cumsum"), _along(1)),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "logsumexp"), _along(1, default="all")),
    **dict.fromkeys(("chunk", "split"), _along(2, default=0)),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "movedim"), _along(1, 2)),
    **dict.fromkeys(("select", "narrow", "squeeze", "unflatten"), _along(1)),
    **dict.fromkeys(("cat", "concat"), _along(1, default=0)),
    "stack": _along(1, default=0, more=1),
    "unsqueeze": _along(1, more=1),
    "unbind": _along(1, default=0),
    "glu": _along(1, default=-1),
    **dict.fromkeys(("view", "reshape", "expand"), _sizes),
    "flatten": _flatten,
    "permute": _permute,
    **dict.fromkeys(("t", "__get__"), _t),
    "__getitem__": _take,
}
"""Name of an operator -> its rule."""
