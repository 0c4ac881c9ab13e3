"""Kinds of numbers that operators make of samples: those of one sample, or statistics of several.

By the names of operators, the dimensions that they reduce and the samples to which the entries of
their operands belong. Used by `statistics`, which follows both from operator to operator.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from upslope.gradnorm.proofs.owners import (
    SEARCHING,
    counting_dimensions,
    do_meet,
    is_entrywise,
    owners_of_search,
)

SAMPLE, STATISTIC = "sample", "statistic"
"""The kinds of numbers: of one sample in each entry, or of several."""

REDUCING = frozenset(
    {
        "_is_all_true", "_is_any_true",
        "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "argsort", "bincount",
        "count_nonzero",
        "cummax", "cummin", "cumprod", "cumsum", "dist", "histc", "kthvalue", "log_softmax",
        "logcumsumexp", "logsumexp", "max", "mean", "median", "min", "mode", "msort", "nanmean",
        "nanmedian", "nanquantile", "nansum", "norm", "normalize", "prod", "quantile", "softmax",
        "softmin", "sort", "std", "std_mean", "sum", "topk", "trace", "unique",
        "unique_consecutive", "var", "var_mean", "vector_norm", "matrix_norm",
    }
)  # fmt: skip
"""Operators that make numbers of all entries along some dimensions, or of all entries."""

CROSSING = frozenset({"__matmul__", "__rmatmul__", "matmul", "mm", "cdist", "inner", "outer"})
"""Operators that make numbers of pairs of rows, of samples where both inputs have them."""

TYPING = frozenset(
    {"expand_as", "reshape_as", "to", "type_as", "view_as", "empty_like", "full_like", "new_full",
     "new_empty", "new_ones", "new_zeros", "ones_like", "rand_like", "randn_like", "zeros_like"}
)  # fmt: skip
"""Operators that look at the shape or type alone of all their inputs, or of all but the first."""

CREATING = frozenset({"arange", "empty", "full", "linspace", "ones", "range", "zeros"})
"""Operators that make tensors of numbers, as Python would."""

KNOWN_MEANING = REDUCING | TYPING | frozenset({"__getitem__", "__setitem__", "grid_sample"})
"""Operators of which `StatisticsWatch` knows what they make, whatever their owners are."""

REARRANGING = frozenset(
    {"topk", "unique", "unique_consecutive", "bincount", "histc", "argmax", "argmin"}
)
"""Reductions whose results are in no place of the entries that they are made of."""


_BY_INDEX = {
    "gather": 1, "take_along_dim": 2,
    **{f"scatter{form}": 1 for form in ("", "_", "_add", "_add_", "_reduce", "_reduce_")},
}  # fmt: skip
"""Operators that move entries along a dimension, by an index for each -> the place of that among
their arguments."""


def is_of_two(name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operator that may reduce takes two tensors entry by entry instead."""
    return name in {"max", "min"} and any(isinstance(x, Tensor) for x in (*args, *kwargs.values()))


def kind_by_owners(
    name: str,
    args: Any,
    kwargs: Any,
    operands: list[Tensor],
    marks: list[Any],
    owners: list[Tensor],
    out: Any,
) -> str | None:
    """The kind of what an operator makes of tensors of which every entry's sample is known.

    owners: of the tensors that hold samples, in order. out: what it has made. None where this does
    not decide.
    """
    if all(x.numel() == 1 for x in owners) and len({int(x) for x in owners}) == 1:
        return SAMPLE  # all of it belongs to one sample
    if name in REDUCING and isinstance(args[0] if args else None, Tensor) and marks[0] == SAMPLE:
        if is_of_two(name, args[1:], kwargs):
            return STATISTIC if do_meet(owners) else SAMPLE
        dims = dimensions_of(name, args, kwargs, operands[0].dim())
        counting = counting_dimensions(owners[0])
        over = counting if dims is None else counting & dims
        return STATISTIC if over and operands[0].numel() else SAMPLE
    if is_entrywise(name):
        return STATISTIC if do_meet(owners) else SAMPLE
    if name in SEARCHING:
        tensors = [x for x, mark in zip(operands, marks, strict=True) if mark]
        inputs = [*zip(tensors, owners, strict=True)]
        return STATISTIC if owners_of_search(name, args, kwargs, inputs, out) is None else SAMPLE
    if name in _BY_INDEX:
        return _kind_by_index(name, args, kwargs, owners)
    if name == "einsum" and all(x.is_floating_point() for x in operands):
        return SAMPLE  # letters say what meets, no lengths: a trial decides (`dependence`)
    return None


def _kind_by_index(name: str, args: Any, kwargs: Any, owners: list[Tensor]) -> str | None:
    """The kind of what is moved along a dimension by an index; None where samples lie along it.

    An index of one sample must not move the entries of another.
    """
    dim = kwargs.get("dim", args[min(_BY_INDEX[name], len(args) - 1)] if args else None)
    rank = owners[0].dim()
    if type(dim) is not int or any(x.dim() != rank or x.shape[dim] > 1 for x in owners):
        return None
    # An index may be shorter than what it is for.
    sizes = [min((x.shape[d] for x in owners if x.shape[d] > 1), default=1) for d in range(rank)]
    corners = [x[tuple(slice(min(m, k)) for m, k in zip(sizes, x.shape, strict=True))]
               for x in owners]  # fmt: skip
    return STATISTIC if do_meet(corners) else SAMPLE


def dimensions_of(name: str, args: Any, kwargs: Any, count: int) -> set[int] | None:
    """The dimensions that an operator reduces; None for all of them."""
    if name in {"norm", "vector_norm", "topk", "kthvalue", "quantile", "nanquantile", "normalize"}:
        position, default = 2, {"topk": -1, "kthvalue": -1, "normalize": 1}.get(name)
    else:
        position, default = 1, {"sort": -1, "argsort": -1, "msort": 0}.get(name)
    dim = kwargs.get("dim", kwargs.get("axis", args[position] if len(args) > position else default))
    if name in {"max", "min"} and isinstance(dim, Tensor):
        return set()  # of two tensors, entry by entry
    if (
        name in {"bincount", "histc", "unique", "unique_consecutive", "dist", "trace"}
        or dim is None
    ):
        return None
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not dims:
        return None
    return {d % count for d in dims if isinstance(d, int)} if count else None


def crosses(operands: list[Tensor], counting: list[set[int]]) -> bool:
    """Whether two tensors are spread against each other along their samples: (n, 1), (1, n)."""
    places = [{d - x.dim() for d in dims} for x, dims in zip(operands, counting, strict=True)]
    if not all(places) or places[0] & places[1]:
        return False
    a, b = operands
    spread = ((b, places[0]), (a, places[1]))
    return all(-d > other.dim() or other.shape[d] == 1 for other, at in spread for d in at)
