"""Rules of `row_graphs`, which goes through autograd's graph of a weight: one for each node.

A rule takes a node and what is known of its inputs, and says what is known of its output; None
where it is neither rows, nor sums of them, nor a number for each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ENTRIES, SQUARES, SUMS, NUMBERS = "entries", "squares", "sums", "numbers"
"""What a tensor of the graph holds: rows a v + b; their squares; sums of either over some
dimensions, of which more come; or a number for each row."""


class Reading(NamedTuple):
    """What is known of a tensor of the graph, or of a node's output."""

    kind: str
    behind: int
    """How many dimensions it has behind that of the rows."""
    value: Tensor
    """Of `ENTRIES` the place in the plane, (2, rows, 2), of others (2, rows): of squares and sums
    what will be the sum over the whole row. All of it is there twice, with a graph of its own, so
    that one backward pass has the derivatives of both numbers of a row."""
    is_exact: bool
    """Whether no constant is missing in it, which had been added."""


class RowSizes(NamedTuple):
    """Sizes of a weight that is made of rows: how many, and the entries of all of them."""

    rows: int
    size: int

    @property
    def width(self) -> int:
        """Return the entries of a row."""
        return self.size // self.rows

    def count_behind(self, kind: str, shape: tuple[int, ...]) -> int | None:
        """Return how many dimensions lie behind that of the rows, which come first.

        None where they do not. kind: `ENTRIES` or `NUMBERS`, in the order of the rows.
        """
        size = self.size if kind == ENTRIES else self.rows
        axis = next((axis for axis, length in enumerate(shape) if length != 1), None)
        if axis is None or shape[axis] != self.rows or math.prod(shape) != size:
            return None
        return len(shape) - 1 - axis


class Node(NamedTuple):
    """A node of the graph, one of its outputs, and that output's shape. sizes: of the weight."""

    sizes: RowSizes
    node: Any
    place: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the first letters of the operator's name."""
        return type(self.node).__name__[:3]

    def corrected(self, reading: Reading, record: Tensor) -> Tensor:
        """Return numbers of the rows with the values that a node has a record of."""
        # They may be repeated along the dimensions behind.
        index: tuple[Any, ...] = (..., *(0,) * reading.behind)
        values = record.detach()[index].reshape(-1)
        return reading.value + (values - reading.value).detach()

    def shift(self, numbers: Tensor) -> Tensor:
        """Return what numbers that are added to whole rows add to their places, (rows, 2)."""
        along = numbers * math.sqrt(self.sizes.width)
        return torch.stack([along, torch.zeros_like(along)], dim=-1)


_Parents = Sequence[Reading | None]
_Rule = Callable[[Node, _Parents], Reading | None]


def _pair(at: Node, parents: _Parents) -> Reading | None:
    """Read a sum, a difference, a product, a quotient, a maximum or a minimum of two."""
    readings = [p for p in parents if p is not None]
    kinds, behind = {p.kind for p in readings}, readings[0].behind
    if any(p.behind != behind for p in readings):
        return None
    if kinds == {NUMBERS}:
        # A constant, or one of the numbers, may be broadcast to more than a number for each row.
        same = at.sizes.count_behind(NUMBERS, at.shape) == behind
        return _numbers_of_pair(at, parents, behind) if same else None
    if not kinds <= {ENTRIES, NUMBERS} or math.prod(at.shape) != at.sizes.size:
        return None
    if at.name in {"Add", "Sub"}:
        return _sum_of_pair(at, parents, behind)
    return _product_of_pair(at, parents) if at.name in {"Mul", "Div"} else None


def _product_of_pair(at: Node, parents: _Parents) -> Reading | None:
    """Read a product or a quotient, of which at least one part are whole rows."""
    first, second = parents
    if first is None or (at.name == "Div" and first.kind != ENTRIES):
        return None
    if second is None:
        return _times_constant(at, first)
    if first.kind == second.kind:
        is_square = at.name == "Mul" and at.node.next_functions[0] == at.node.next_functions[1]
        return _squares(first) if is_square else None
    entries, numbers = (first, second) if first.kind == ENTRIES else (second, first)
    record = at.node._saved_other if entries is first else at.node._saved_self
    if not entries.is_exact:
        return None
    factors = at.corrected(numbers, record)[..., None]
    value = entries.value * factors if at.name == "Mul" else entries.value / factors
    return entries._replace(value=value)


def _times_constant(at: Node, rows: Reading) -> Reading | None:
    """Read whole rows times a constant, or divided by one: a single number."""
    constant = at.node._saved_other
    if constant is None or constant.dim() > 0:
        return None
    factor = constant.item() if at.name == "Mul" else 1 / constant.item()
    return rows._replace(value=rows.value * factor)


def _sum_of_pair(at: Node, parents: _Parents, behind: int) -> Reading | None:
    """Read a sum or a difference, of which at least one part are whole rows."""
    first, second = parents
    if first is None or second is None:  # a constant may have any entries
        return None
    left, right = (p.value if p.kind == ENTRIES else at.shift(p.value) for p in (first, second))
    alpha = at.node._saved_alpha if at.name == "Add" else -at.node._saved_alpha
    is_exact = first.is_exact and second.is_exact
    return Reading(ENTRIES, behind, left + alpha * right, is_exact)


def _numbers_of_pair(at: Node, parents: _Parents, behind: int) -> Reading | None:
    """Read what two numbers of each row make, or one and a constant."""
    if at.name in {"Add", "Sub"}:
        alpha = at.node._saved_alpha if at.name == "Add" else -at.node._saved_alpha
        first, second = (None if p is None else p.value for p in parents)
        if first is None or second is None:
            value = first if second is None else alpha * second
            assert value is not None
            return Reading(NUMBERS, behind, value, False)
        is_exact = all(p is not None and p.is_exact for p in parents)
        return Reading(NUMBERS, behind, first + alpha * second, is_exact)
    operands = []
    for reading, name in zip(parents, ("_saved_self", "_saved_other"), strict=True):
        record = getattr(at.node, name)
        if reading is None:
            if record is None:
                return None
            shape = (1,) * (len(at.shape) - record.dim()) + tuple(record.shape)
            # A number of Python's is kept in double precision, to which it would take the others.
            numbers = next(p.value for p in parents if p is not None)
            constants = record.detach().to(numbers.dtype)
            operands.append(constants.view(shape).expand(at.shape).reshape(-1))
        else:  # what a product with a constant needs not is not kept
            operands.append(reading.value if record is None else at.corrected(reading, record))
    operators: Mapping[str, Callable[..., Tensor]] = {
        "Mul": torch.mul,
        "Div": torch.div,
        "Max": torch.maximum,
        "Min": torch.minimum,
    }
    # A product with a constant is as inexact as the number; all else was corrected.
    is_exact = all(p is None or p.is_exact for p in parents)
    return Reading(NUMBERS, behind, operators[at.name](*operands), is_exact)


def _squares(reading: Reading) -> Reading | None:
    value = reading.value.square().sum(dim=-1)
    return Reading(SQUARES, reading.behind, value, True) if reading.is_exact else None


def _power(at: Node, parents: _Parents) -> Reading | None:
    (reading,) = parents
    assert reading is not None
    exponent = at.node._saved_exponent
    if reading.kind == NUMBERS:
        base = at.corrected(reading, at.node._saved_self)
        return reading._replace(value=base**exponent, is_exact=True)
    return _squares(reading) if reading.kind == ENTRIES and exponent == 2 else None


def _function(
    function: Callable[[Any, Tensor], Tensor], record: str, invert: Callable[[Tensor], Tensor]
) -> _Rule:
    """Return the rule of a function of a number.

    function: of the node and the numbers. record: what the node has a record of; invert:
    from that to the numbers.
    """

    def rule(at: Node, parents: _Parents) -> Reading | None:
        first = parents[0]
        if first is None or first.kind != NUMBERS or any(parents[1:]):
            return None
        numbers = at.corrected(first, invert(getattr(at.node, record).detach()))
        return first._replace(value=function(at.node, numbers), is_exact=True)

    return rule


def _clamp(node: Any, numbers: Tensor) -> Tensor:
    return numbers.clamp(node._saved_min, getattr(node, "_saved_max", None))


def _itself(at: Node, parents: _Parents) -> Reading | None:  # noqa: ARG001
    return parents[0]


def _negative(at: Node, parents: _Parents) -> Reading | None:  # noqa: ARG001
    (reading,) = parents
    return None if reading is None else reading._replace(value=-reading.value)


def _reshape(at: Node, parents: _Parents) -> Reading | None:
    (reading,) = parents
    if reading is None or reading.kind not in (ENTRIES, NUMBERS):
        return None
    behind = at.sizes.count_behind(reading.kind, at.shape)
    return None if behind is None else reading._replace(behind=behind)


def _expand(at: Node, parents: _Parents) -> Reading | None:  # noqa: ARG001
    (reading,) = parents
    return reading if reading is not None and reading.kind == NUMBERS else None


class _Reduction(NamedTuple):
    """A reduction over dimensions behind the rows."""

    is_whole: bool
    """Whether it is over all of them that are left."""
    behind: int
    size: int
    """How many entries become one."""


def _reduction(at: Node, reading: Reading) -> _Reduction | None:
    """Return over what a node reduces; None if not behind the rows alone."""
    parent, place = at.node.next_functions[0]
    before = tuple(parent._input_metadata[place].shape)
    axis = len(before) - 1 - reading.behind
    # Numbers below zero may be shown without their sign.
    dims = {
        int(dim if dim < 2**63 else dim - 2**64) % len(before) for dim in at.node._saved_dim or ()
    }
    if not dims or min(dims) <= axis:
        return None
    is_whole = all(length == 1 or dim in dims for dim, length in enumerate(before) if dim > axis)
    behind = reading.behind - (len(before) - len(at.shape))
    return _Reduction(is_whole, behind, math.prod(before[dim] for dim in dims))


def _sum(at: Node, parents: _Parents) -> Reading | None:
    """Read a sum or a mean over dimensions behind the rows."""
    (reading,) = parents
    if reading is None or reading.kind == NUMBERS:
        return None
    reduction = _reduction(at, reading)
    if reduction is None:
        return None
    total = reading.value
    if reading.kind == ENTRIES:
        total = total[..., 0] * math.sqrt(at.sizes.width)
    if type(at.node).__name__.startswith("Mean"):
        total = total / reduction.size
    kind = NUMBERS if reduction.is_whole else SUMS
    return Reading(kind, reduction.behind, total, reading.is_exact)


def _spread(at: Node, parents: _Parents) -> Reading | None:
    """Read a variance or a standard deviation, or one of them with the mean."""
    (reading,) = parents
    reduction = None if reading is None else _reduction(at, reading)
    if reading is None or reading.kind != ENTRIES or reduction is None or not reduction.is_whole:
        return None
    name, width = type(at.node).__name__, at.sizes.width
    if at.place == 1:
        value, is_exact = reading.value[..., 0] / math.sqrt(width), reading.is_exact
    else:
        correction = at.node._saved_correction
        freedom = width - (1 if correction is None else correction)
        if freedom <= 0:
            return None
        value, is_exact = reading.value[..., 1].square() / freedom, True
        value = value.sqrt() if name.startswith("Std") else value
    return Reading(NUMBERS, reduction.behind, value, is_exact)


def _norm(at: Node, parents: _Parents) -> Reading | None:
    """Read the Euclidean norms of whole rows."""
    (reading,) = parents
    reduction = None if reading is None else _reduction(at, reading)
    if reading is None or reading.kind != ENTRIES or reduction is None or not reduction.is_whole:
        return None
    if at.node._saved_ord != 2 or not reading.is_exact:
        return None
    value = reading.value.square().sum(dim=-1).sqrt()
    return Reading(NUMBERS, reduction.behind, value, True)


def _normalise(reading: Reading, width: int, eps: float | Tensor) -> Tensor:
    """Return the places of rows less their means, divided by sqrt(variance + eps)."""
    along, spread = torch.zeros_like(reading.value[..., 0]), reading.value[..., 1]
    return torch.stack([along, spread / (spread.square() / width + eps).sqrt()], dim=-1)


def _batch_norm(at: Node, parents: _Parents) -> Reading | None:
    """Read rows of (1, rows, ...) that are normalised as channels."""
    first, weight, bias = parents
    is_by_row = at.node._saved_training and len(at.shape) > 2 and at.shape[0] == 1
    if first is None or first.kind != ENTRIES or first.behind != len(at.shape) - 2 or not is_by_row:
        return None
    if any(p is not None and (p.kind != NUMBERS or p.behind) for p in (weight, bias)):
        return None
    value, record = _normalise(first, at.sizes.width, at.node._saved_eps), at.node._saved_weight
    if weight is not None:
        value = value * at.corrected(weight, record)[..., None]
    elif record is not None:
        value = value * record.detach()[:, None]
    if bias is not None:
        value = value + at.shift(bias.value)
    # Whether a constant bias was added is not to be seen.
    return first._replace(value=value, is_exact=False)


def _layer_norm(at: Node, parents: _Parents) -> Reading | None:
    """Read rows that are normalised, without scale and shift."""
    first, *others = parents
    node, width = at.node, at.sizes.width
    is_plain = not any(others) and node._saved_weight is None and node._saved_bias is None
    sizes = tuple(node._saved_normalized_shape)
    if first is None or first.kind != ENTRIES or not is_plain:
        return None
    if math.prod(sizes) != width or first.behind != len(sizes):
        return None
    variance = first.value[..., 1].detach().square() / width
    eps = node._saved_result2.detach().reshape(-1) ** -2 - variance
    return first._replace(value=_normalise(first, width, eps), is_exact=True)


RULES: Mapping[str, _Rule] = {
    **{f"{name}Backward0": _pair for name in ("Add", "Sub", "Mul", "Div", "Maximum", "Minimum")},
    "SqrtBackward0": _function(lambda _, x: x.sqrt(), "_saved_result", torch.square),
    "RsqrtBackward0": _function(lambda _, x: x.rsqrt(), "_saved_result", lambda y: y**-2),
    "ReciprocalBackward0": _function(lambda _, x: 1 / x, "_saved_result", torch.reciprocal),
    "ExpBackward0": _function(lambda _, x: x.exp(), "_saved_result", torch.log),
    "AbsBackward0": _function(lambda _, x: x.abs(), "_saved_self", torch.clone),
    "LogBackward0": _function(lambda _, x: x.log(), "_saved_self", torch.clone),
    "ClampBackward1": _function(_clamp, "_saved_self", torch.clone),
    "ClampMinBackward0": _function(_clamp, "_saved_self", torch.clone),
    "PowBackward0": _power,
    "CloneBackward0": _itself,
    "NegBackward0": _negative,
    **{f"{name}Backward0": _reshape for name in ("View", "UnsafeView", "ReshapeAlias",
                                                 "Unsqueeze", "Squeeze")},
    "SqueezeBackward1": _reshape,
    "ExpandBackward0": _expand,
    "MeanBackward1": _sum,
    "SumBackward1": _sum,
    **{f"{name}Backward0": _spread for name in ("Std", "Var", "VarMean", "StdMean")},
    "LinalgVectorNormBackward0": _norm,
    "NativeBatchNormBackward0": _batch_norm,
    "NativeLayerNormBackward0": _layer_norm,
}  # fmt: skip
"""Name of a node of autograd's graph -> what reads it."""
