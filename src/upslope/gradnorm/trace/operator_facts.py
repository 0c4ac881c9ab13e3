"""Facts about each torch function that hold whatever it is given, decided once.

`intercept` asks `operator_of` for the facts of every operator that a network runs. Which names
belong to which kind stands in `operators`, `operator_names` and the registry of kernels.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.program.operator_names import (
    DRAWING_OPERATORS,
    LEAVING,
    LOOKING_UP,
    MOVING,
    is_noted_in_outline,
    label_of,
    name_of,
)
from upslope.gradnorm.kernels import COMPOSITIONS, REGISTRY
from upslope.gradnorm.trace.operators import (
    ASKED_OF_CONSTANTS,
    ASKED_OF_SAMPLES,
    CHOOSING,
    JOINING,
    LENDING,
    LIKE_ANOTHER,
    is_entrywise,
    is_written_in_python,
    view_samples,
    writes,
)
from upslope.gradnorm.trace.refusals import BATCH_NORMS, EMBEDDINGS, TAKES_NODE

_ASKING = frozenset(
    {Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}
    | {getattr(Tensor, name).__get__
       for name in ("shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout")}
)  # fmt: skip
"""Functions that tell of a tensor, and compute nothing."""

_ASKING_FOR_SIZE = frozenset(
    {Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.shape.__get__}  # type: ignore[attr-defined]
)
"""Those that may tell how long a tensor is; Python's loop over a tensor asks for `dim` first."""

UNCOUNTED_WRITES = frozenset({Tensor.data.__get__, Tensor.data.__set__})  # type: ignore[attr-defined]
"""Functions behind which a tensor may get other numbers, of which it does not count the write."""

_DECIDING = frozenset(
    {"topk", "argmax", "max", "one_hot", "permute", "transpose", "sum", "any", "amax", "gt", "ge",
     "ne", "eq", "greater", "greater_equal", "not_equal", "__gt__", "__ge__", "__ne__", "__eq__",
     "to", "int", "long", "bool", "cumsum", "lt", "le", "less", "less_equal", "__lt__", "__le__",
     "sub", "__sub__", "mul", "__mul__", "view", "reshape", "unsqueeze", "flatten"}
)  # fmt: skip
"""Operators from a router's numbers to the experts that they choose (`decisions`)."""

_is_cudnn_enabled: Callable[[], bool] = torch._C._get_cudnn_enabled
"""What `torch.backends.cudnn.enabled` says, in a tenth of the time."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function, and its arguments."""


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Call | None:
    if max_norm is not None or (padding_idx is not None and padding_idx < 0):
        return None
    padding = -1 if padding_idx is None else padding_idx
    if padding >= len(weight):
        return None
    return torch.embedding, (weight, input, padding, scale_grad_by_freq, sparse)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call:
    return torch.layer_norm, (input, normalized_shape, weight, bias, eps, _is_cudnn_enabled())


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call | None:
    if training or eps < 0:
        return None
    rest = (running_mean, running_var, training, momentum, eps, _is_cudnn_enabled())
    return torch.batch_norm, (input, weight, bias, *rest)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call | None:
    # With a single number in a group torch refuses, and says why.
    if input.dim() < 2 or input.numel() < 2 * num_groups:
        return None
    return torch.group_norm, (input, num_groups, weight, bias, eps, _is_cudnn_enabled())


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Call:
    return torch.rms_norm, (input, normalized_shape, weight, eps)


_INNER_CALLS: Mapping[Callable[..., Any], Callable[..., Call | None]] = {
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
}
"""Frequent function written in Python -> what takes its arguments and returns the one call of torch
that it comes to, or None where it does more. Its own code need not be run to meet that operator."""


def _has_fixed_statistics(args: tuple[Any, ...]) -> bool:
    """Whether a call of `torch.batch_norm` normalises by statistics that it is given."""
    return len(args) > 5 and not args[5] and args[3] is not None and args[4] is not None


def _divides_by_no_frequency(args: tuple[Any, ...]) -> bool:
    """Whether the gradient of a call of `torch.embedding` is a sum over samples."""
    return len(args) < 4 or not args[3]


_CHECKS: Mapping[Callable[..., Any], Callable[[tuple[Any, ...]], bool]] = {
    torch.batch_norm: _has_fixed_statistics,
    torch.embedding: _divides_by_no_frequency,
}
"""Function of which some calls are refused -> whether a call is none of these, from its arguments
if none has a name."""


@dataclass(slots=True, eq=False)
class Operator:
    """What is known of a torch function whatever it is given.

    Most calls need little (`TensorKinds.read` says which): `runs_on_constants`, `runs_on_samples`
    and `meets` say of which functions that holds. All other fields say what more there is to do.
    """

    func: Callable[..., Any]
    name: str
    label: str
    """The name under which a program notes it (`operator_names.label_of`)."""
    inner_call: Callable[..., Call | None] | None
    """What returns the one call that it comes to, from its arguments (`_INNER_CALLS`); None for a
    function that is not among those."""
    asks: bool
    """Whether it tells of a tensor and computes nothing."""
    asks_size: bool
    """Whether the answer may say how long a tensor is."""
    runs_on_constants: bool
    """Whether it need only be run where all tensors among its arguments are constants."""
    runs_on_samples: bool
    """Whether it need only be run, and its outline noted, where samples and no weights are among
    its tensors."""
    runs_on_weights: bool
    """Whether it need only be asked for copies (`batch_expansion`) where weights, or weights and
    constants, are all tensors among its arguments."""
    lends: bool
    """Whether `runs_on_samples` asks for a first tensor that depends on the samples
    (`operators.LENDING`)."""
    moves: bool
    """Whether it moves entries (`operator_names.MOVING`). `runs_on_samples` then asks for one
    tensor beside Python's numbers, or, if it `puts`, for numbers that no data send anywhere."""
    puts: bool
    """Whether it puts numbers into entries of its first tensor, `x[index] = value`."""
    joins: bool
    """Whether it moves entries, and may take its samples in a list."""
    run: Callable[..., Any]
    """What is called for it where `runs_on_samples` holds."""
    tells_places: bool
    """Whether it tells the places of entries if it has one argument alone: `where`."""
    decides: bool
    """Whether it may be a step from a router's numbers to what they decide (`decisions`)."""
    meets: bool
    """Whether it need only go to its kernel, and its outline be noted, where samples and weights
    are among its tensors."""
    check: Callable[[tuple[Any, ...]], bool] | None
    """What tells from the arguments of a call whether `meets` holds for it (`_CHECKS`); None where
    it holds for all calls."""
    rule: Callable[..., Any] | None
    """The rule of its kernel (`kernels.REGISTRY`)."""
    rule_counts: Container[int]
    """How many arguments without names the rule takes, where none has a name."""
    composition: Callable[..., Any] | None
    """What computes it by other operators (`kernels.COMPOSITIONS`)."""
    is_composed: bool
    """Whether it is Python code that calls other operators."""
    is_entrywise: bool
    """Whether each entry of the output follows from one entry of each tensor."""
    joins_tensors: bool
    """Whether it puts several tensors beside each other, as `cat` does."""
    is_like_another: bool
    """Whether it takes the kind of its first tensor (`operators.LIKE_ANOTHER`)."""
    chooses: bool
    """Whether it may take entries by the data."""
    normalises: bool
    """Whether it is a batch normalisation."""
    embeds: bool
    """Whether it looks up rows of a table."""
    writes: bool
    """Whether it writes into its first tensor."""
    leaves: bool
    """Whether it makes a number of Python, which has no gradient."""


def _counts_of_arguments(rule: Callable[..., Any]) -> range:
    """Return how many arguments a rule takes without their names, beside the tape."""
    parameters = list(inspect.signature(rule).parameters.values())[1:]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return range(0)
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_open = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    least = sum(p.default is p.empty for p in places)
    return range(least, sys.maxsize if is_open else len(places) + 1)


def _is_known_by_name(func: Callable[..., Any], name: str) -> bool:
    """Whether a function's name says what it does: single overloads and scripts have none."""
    is_special = func is Tensor.register_hook or func == TAKES_NODE
    return bool(name) and name == name_of(func) and not is_special


def _runs_on_constants(name: str) -> bool:
    """Whether a function known by its name need only be run where it takes constants alone."""
    return name not in ASKED_OF_CONSTANTS and name not in DRAWING_OPERATORS


def _runs_on_samples(func: Callable[..., Any], name: str) -> bool:
    """Whether a function known by its name need only be run, and noted, where it takes samples."""
    is_noted = is_noted_in_outline(name) or name == "__setitem__"
    return is_noted and name not in ASKED_OF_SAMPLES and func not in UNCOUNTED_WRITES


def _works_on_weights(name: str) -> bool:
    """Whether a function known by its name makes something new of the weights among its tensors."""
    in_outline = is_noted_in_outline(name) or name in LOOKING_UP
    return in_outline and not writes(name) and name not in LIKE_ANOTHER


@functools.lru_cache(4096)  # asked of every operator
def operator_of(func: Callable[..., Any]) -> Operator:
    """Return what is known of a torch function, whatever it is given."""
    name = getattr(func, "__name__", "")
    moves, check = name in MOVING, _CHECKS.get(func)
    is_named = _is_known_by_name(func, name)
    works_on_weights = is_named and _works_on_weights(name)
    normalises, embeds, chooses = func in BATCH_NORMS, func in EMBEDDINGS, func in CHOOSING
    # Of some of these only a look at their arguments says what they do with samples.
    is_sure = check is not None or not (normalises or embeds or chooses)
    # What is written in Python is met as the operators that it calls.
    name_of_kernel = "" if is_written_in_python(func) else name
    rule = REGISTRY.get(name_of_kernel)
    return Operator(
        func=func,
        name=name,
        label=label_of(func) if is_named else name,
        inner_call=_INNER_CALLS.get(func),
        asks=func in _ASKING,
        asks_size=func in _ASKING_FOR_SIZE,
        runs_on_constants=is_named and _runs_on_constants(name),
        runs_on_samples=is_named and _runs_on_samples(func, name),
        runs_on_weights=works_on_weights and not (normalises or embeds),
        lends=name in LENDING,
        moves=moves,
        puts=name == "__setitem__",
        joins=moves and name in JOINING,
        run=view_samples if func is Tensor.view else func,
        tells_places=name == "where",
        decides=name in _DECIDING,
        meets=works_on_weights and not moves and is_sure,
        check=check,
        rule=rule,
        rule_counts=() if rule is None else _counts_of_arguments(rule),
        composition=COMPOSITIONS.get(name_of_kernel),
        is_composed=isinstance(func, types.FunctionType),
        is_entrywise=is_entrywise(name),
        joins_tensors=name in JOINING,
        is_like_another=name in LIKE_ANOTHER,
        chooses=chooses,
        normalises=normalises,
        embeds=embeds,
        writes=writes(name),
        leaves=name in LEAVING,
    )
