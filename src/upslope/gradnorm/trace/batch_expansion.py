"""Weights that a model copies to every sample before they meet.

A class token expanded to the batch, a table of positions repeated for it, a bias added to a mask
that has rows for every sample: what comes of it is made of weights and constants alone, and yet it
has entries for single samples. Such an operator is recorded as an expansion (`kernels/expand`): its
output depends on the samples, and each sample's gradient is summed over its own copies.

Sizes tell: along some dimension the output is a multiple of n times as long as the weights. That
may be a coincidence. Then the samples cannot be told apart, and the engine runs the model again
with nothing held to be a copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.trace.operators import APPLYING, tensors_of
from upslope.gradnorm.trace.routing.indexing import TAKING


def is_batch_expansion(shape: Sequence[int], weights: Sequence[Tensor], n: int) -> bool:
    """Whether some dimension is a multiple of n times as long as that of every weight."""
    if n < 2:
        return False
    rank = len(shape)
    padded_shapes = [(1,) * (rank - w.dim()) + tuple(w.shape) for w in weights]
    columns = zip(shape, *padded_shapes, strict=True)
    return any(
        size > 0 and all(size % (n * size_of_weights) == 0 for size_of_weights in sizes)
        for size, *sizes in columns
    )


class BatchExpansion(NamedTuple):
    """Copies of one weight side by side, as a view that is expanded, and then flattened."""

    weight: Tensor
    shape: list[int]
    merged: tuple[int, int] | None
    """The first and the last of the dimensions that become one."""


_JOINING_COPIES = frozenset({"stack", "cat", "concat", "concatenate", "repeat_interleave"})


def expansion_by_joining(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], n: int
) -> BatchExpansion | None:
    """`cat` or `stack` of a multiple of n times the same weight, or `repeat_interleave` of it.

    None for anything else.
    """
    if name not in _JOINING_COPIES:
        return None
    names = ("input", "repeats", "dim") if name == "repeat_interleave" else ("tensors", "dim")
    named_arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    if name == "repeat_interleave":
        weight, count, dim = (
            named_arguments["input"],
            named_arguments.get("repeats"),
            named_arguments.get("dim"),
        )
        weight = weight if dim is not None else weight.flatten()
        dim, stack_count, inner = 0 if dim is None else dim % max(1, weight.dim()), False, 1
    else:
        tensors = named_arguments["tensors"]
        weight, count, dim = tensors[0], len(tensors), named_arguments.get("dim", 0)
        stack_count, inner = name == "stack", 0
        dim = dim % (weight.dim() + stack_count) if weight.dim() + stack_count else 0
        if not all(_same(weight, other) for other in tensors[1:]):
            return None
    if (
        not isinstance(count, int)
        or count == 0
        or count % n
        or (weight.dim() == 0 and not stack_count)
    ):
        return None
    view = weight.unsqueeze(dim + inner)
    shape = [*view.shape]
    shape[dim + inner] = count
    return BatchExpansion(view, shape, None if stack_count else (dim, dim + 1))


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or the same view of one."""
    if a is b:
        return True
    geometry = [(t.shape, t.stride(), t.storage_offset(), t.is_conj()) for t in (a, b)]
    base = a if a._base is None else a._base
    return geometry[0] == geometry[1] and base is (b if b._base is None else b._base)


def repeats(args: tuple[Any, ...]) -> tuple[Tensor, list[int], list[int]]:
    """The arguments of `repeat` or `tile` -> a view, the shape to expand it to, and the result's.

    Each dimension of the result becomes two, of which the first is expanded: no entry is copied.
    """
    weight, *rest = args
    times = tuple(rest[0]) if isinstance(rest[0], (tuple, list)) else tuple(rest)
    rank = max(len(times), weight.dim())
    times = (1,) * (rank - len(times)) + times
    sizes = (1,) * (rank - weight.dim()) + tuple(weight.shape)
    view = weight.reshape(list(itertools.chain(*((1, size) for size in sizes))))
    repeated_sizes = list(itertools.chain(*zip(times, sizes, strict=True)))
    return view, repeated_sizes, [t * s for t, s in zip(times, sizes, strict=True)]


def repeat_weight(args: tuple[Any, ...]) -> Tensor:
    """`repeat` of a weight: a view where its entries are single ones, as expanding would give."""
    view, repeated_sizes, shape = repeats(args)
    return view.expand(repeated_sizes).reshape(torch.Size(shape))


def row_of_sample(args: tuple[Any, ...], n: int) -> int | None:
    """Return the sample into whose row a weight is written, `target[i, ...] = weight`.

    None where the target has no row per sample, or several are written.
    """
    target, index, _ = args
    first = index[0] if isinstance(index, tuple) and index else index
    whole = isinstance(first, int) and not isinstance(first, bool)
    if not whole or target.dim() == 0 or len(target) != n:
        return None
    return int(first) % n


def looks_up_for_each(args: tuple[Any, ...], n: int) -> bool:
    """Whether rows are looked up for every sample, though by constants: repeated positions.

    Distances between as many positions as there are samples differ from row to row, and are not.
    """
    places = [t for t in tensors_of(args) if not t.is_floating_point() and t.dim() > 1]
    return n > 1 and any(_has_equal_rows(p, n) for p in places)


def gives_to_each(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tensors: Sequence[Tensor],
    weights: Weights,
    n: int,
) -> bool:
    """Whether weights meet constants that have the same row for each sample.

    The zeros that a recurrence starts from are multiplied by a weight before any sample is;
    one row of a table, that of the token that sentences begin with, is looked up once for each
    sample, or for each beam of it. If sizes agree by chance, the samples cannot be told apart, as
    with copies.
    """
    if name in TAKING or name == "embedding":
        places = args[1] if name == "embedding" else (*args, *kwargs.values())[-1]
        whole = isinstance(places, Tensor) and places.dtype == torch.int64 and places.dim() > 0
        return whole and len(places) % n == 0 and _has_equal_rows(places, len(places))
    constants = (t for t in tensors if not weights.is_weight(t))
    return name in APPLYING and any(
        t.dim() > 1 and t.is_floating_point() and _has_equal_rows(t, n) for t in constants
    )


def _has_equal_rows(constant: Tensor, n: int) -> bool:
    """Whether a tensor has n rows, all of them equal."""
    rows = constant.dim() > 0 and len(constant) == n
    return rows and bool((constant == constant[:1]).all())
