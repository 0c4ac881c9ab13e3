"""Operators on the rows of tensors -> operators on whole tensors, with the rows in dimension 0.

A rule takes what is known of the rows (`Rows`), the operator, and its arguments with every mapped
tensor whole. It returns what the operator makes of all rows, with the rows in dimension 0, or
NotImplemented where it does not cover the call. Called by `vmapped`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.torch_functions import ENTRYWISE, ENTRYWISE_BY_SIGN, ENTRYWISE_IN_PLACE
from upslope.gradnorm.core.vmap.vmapped_rows import Rows, Rule
from upslope.gradnorm.core.vmap.vmapped_shapes import SHAPE_RULES

_LENDING = frozenset({"to", "type_as"})
"""Operators entry by entry that take the type alone of their other tensors."""


def _entry_by_entry(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """Operators entry by entry: align the dimensions of all tensors from the right."""
    values = [*args, *kwargs.values()]
    tensors = [x for x in values if isinstance(x, Tensor)]
    if any(isinstance(x, (tuple, list)) for x in values):
        return NotImplemented
    # Rows that only lend a shape or a type: what comes out has none of its own.
    if func.__name__ in _LENDING and not rows.has(args[0]):
        return NotImplemented
    ranks = [rows.rank(x) for x in tensors]
    # Beside others, a single number is of a weaker type; beside its row it would not be one.
    if 0 in ranks and len({x.dtype for x in tensors}) > 1:
        return NotImplemented
    writes = func.__name__ in ENTRYWISE_IN_PLACE or func.__name__.startswith("__i")
    if writes and not (rows.has(args[0]) and rows.rank(args[0]) == max(ranks)):
        return NotImplemented
    return _run_aligned(rows, func, args, kwargs, max(ranks))


def _run_aligned(rows: Rows, func: Any, args: Any, kwargs: Any, rank: int) -> Any:
    """Run an operator on tensors that broadcast beside rows of `rank` dimensions."""

    def lift(value: Any) -> Any:
        return rows.lift(value, rank) if isinstance(value, Tensor) else value

    return func(*map(lift, args), **{key: lift(value) for key, value in kwargs.items()})


def _without_draws(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
    """Dropout where nothing is dropped: its input."""
    trains = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return args[0] if args and trains is False else NotImplemented


def _matmul(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
    """Products of matrices, and of vectors as matrices of one row or column."""
    if kwargs or len(args) != 2 or not all(isinstance(x, Tensor) for x in args):
        return NotImplemented
    a, b = args
    ranks = rows.rank(a), rows.rank(b)
    if 0 in ranks:
        return NotImplemented
    # One matrix for all rows: leading dimensions of the other factor are as many rows more.
    if not rows.has(b) and ranks[1] <= 2:
        return torch.matmul(a, b)
    return _product(rows, a, b)


def _product(rows: Rows, a: Tensor, b: Tensor) -> Tensor:
    ranks = rows.rank(a), rows.rank(b)
    if rows.has(b) and ranks[1] == 2 and ranks[0] > 1:  # a matrix for each row, side by side
        out = torch.matmul(a.movedim(0, -3) if rows.has(a) else a.unsqueeze(-3), b)
        return out.movedim(-3, 0)
    rank = max(*ranks, 2)
    matrices = []
    for tensor, its_rank, new_dim in ((a, ranks[0], -2), (b, ranks[1], -1)):
        matrix, its = (tensor.unsqueeze(new_dim), 2) if its_rank == 1 else (tensor, its_rank)
        for _ in range(rank - its if rows.has(tensor) else 0):
            matrix = matrix.unsqueeze(1)
        matrices.append(matrix)
    out = torch.matmul(*matrices)
    out = out.squeeze(-1) if ranks[1] == 1 else out
    return out.squeeze(-1 if ranks[1] == 1 else -2) if ranks[0] == 1 else out


def _linear(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """`x W^T + b`: with one weight for all rows, or with a weight for each of them."""
    if rows.is_first_alone(args, kwargs):
        return func(*args, **kwargs)
    names = ("input", "weight", "bias")
    by_name = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, bias = (by_name.get(name) for name in names)
    if x is None or weight is None or rows.rank(weight) != 2:
        return NotImplemented
    if rows.has(weight):
        matrix = weight.mT
        out = _product(Rows(rows.count, range(1 + rows.has(x)), (matrix, x)), x, matrix)
    else:
        out = func(x, weight)
    if bias is None:
        return out
    # One bias for each row stands beside all of its positions.
    positions = out.dim() - 1 - (rows.has(x) or rows.has(weight))
    for _ in range(positions if rows.has(bias) else 0):
        bias = bias.unsqueeze(1)
    return out + bias


def _on_each(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """Operators on the last dimensions of the first argument, or on each of its entries."""
    return func(*args, **kwargs) if rows.is_first_alone(args, kwargs) else NotImplemented


def _layer_norm(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    shape = args[1] if len(args) > 1 else kwargs.get("normalized_shape", ())
    if not rows.is_first_alone(args, kwargs) or len(shape) > rows.rank(args[0]):
        return NotImplemented
    return func(*args, **kwargs)


def _embedding(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """Look up in one table what each row says."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    has_rows = [x for x in tensors if rows.has(x)]
    fits = len(has_rows) == 1 and not has_rows[0].is_floating_point()
    return func(*args, **kwargs) if fits else NotImplemented


def _on_images(rank: int | None) -> Rule:
    """Return the rule of an operator on a batch of images: that of all rows is one batch.

    rank: the number of dimensions of a single image, which the operator takes as well; None if it
    takes batches of any images, but no single one.
    """

    def rule(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
        if not rows.is_first_alone(args, kwargs):
            return NotImplemented
        x, *others = args
        # Of single images, the rows are the batch that the operator wants.
        if rank is not None and rows.rank(x) == rank:
            return func(*args, **kwargs)
        if rows.rank(x) != 1 + rank if rank is not None else rows.rank(x) < 2:
            return NotImplemented
        out = func(x.flatten(0, 1), *others, **kwargs)
        return out.reshape(x.shape[0], x.shape[1], *out.shape[1:])

    return rule


def _batch_norm(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """Normalise by fixed statistics, all rows as one batch."""
    training = args[5] if len(args) > 5 else kwargs.get("training", False)
    return _on_images(None)(rows, func, args, kwargs) if training is False else NotImplemented


def _attention(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """Attention of queries, keys and values of as many dimensions."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    if len(args) < 3 or any(isinstance(x, Tensor) for x in kwargs.values()):
        mask = kwargs.get("attn_mask")
        tensors = [*tensors, *([mask] if isinstance(mask, Tensor) else [])]
    rank = rows.rank(args[0]) if args else 0
    drops = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
    if len(args) < 3 or drops or kwargs.get("enable_gqa") or rank < 2:
        return NotImplemented
    if any(rows.rank(x) != rank for x in args[:3]) or any(rows.rank(x) > rank for x in tensors):
        return NotImplemented
    return _run_aligned(rows, func, args, kwargs, rank)


def _einsum(rows: Rows, func: Any, args: Any, kwargs: Any) -> Any:
    """Sums of products, with one letter more for the rows."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if kwargs or not isinstance(equation, str) or "->" not in equation or "." in equation:
        return NotImplemented
    inputs, output = equation.replace(" ", "").split("->")
    # Terms of operands that all rows share keep their letters.
    letter = next(x for x in string.ascii_letters if x not in equation)
    terms = inputs.split(",")
    if len(terms) != len(operands):
        return NotImplemented
    new_terms = (letter * rows.has(x) + term for term, x in zip(terms, operands, strict=True))
    return func(f"{','.join(new_terms)}->{letter}{output}", *operands)


_MORE_ENTRYWISE = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
     "logical_and", "logical_or", "logical_not", "__and__", "__or__", "__invert__", "where",
     "masked_fill", "lerp", "addcmul", "addcdiv", "atan2", "rsub", "log2", "log10", "logaddexp"}
)  # fmt: skip


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ENTRYWISE | ENTRYWISE_IN_PLACE | ENTRYWISE_BY_SIGN, _entry_by_entry),
    **dict.fromkeys(_MORE_ENTRYWISE, _entry_by_entry),
    **dict.fromkeys(("relu", "relu_", "gelu", "silu"), _on_each),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _without_draws),
    **SHAPE_RULES,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv", "dot"), _matmul),
    **{f"conv{d}d": _on_images(d + 1) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": _on_images(d + 1) for d in (1, 2, 3)},
    **{f"{kind}_pool{d}d": _on_images(d + 1)
       for kind in ("avg", "adaptive_avg") for d in (1, 2, 3)},
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "linear": _linear,
    "embedding": _embedding,
    "group_norm": _on_images(None),
    "batch_norm": _batch_norm,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
}  # fmt: skip
"""Name of an operator -> its rule. Operators that share a name share it, and it tells them apart by
their arguments."""
