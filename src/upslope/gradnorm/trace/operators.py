"""Kinds of torch's operators, and their arguments, as the interceptor tells them apart.

Which operators are of one kind, by what they do to the entries of tensors; which are Python code
that only hands on to others; and which arguments hold tensors, views of them, and writes into them.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.layout import SamplesNotSeparable
from upslope.gradnorm.core.program import MOVING, is_noted_in_outline, name_of
from upslope.gradnorm.core.tensor_marks import mark, marks_of
from upslope.gradnorm.torch_faults import NAMES as FAULTY

ENTRYWISE = frozenset(
    {
        "add", "sub", "rsub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "where",
        "lerp", "addcmul", "addcdiv", "float_power", "atan2", "hypot", "fmod", "remainder",
        "logaddexp", "copysign", "xlogy", "clamp", "clip", "masked_fill", "cosine_similarity",
        "pairwise_distance", "linalg_cross",
    }
)  # fmt: skip
"""Operators whose output has the broadcast shape of their inputs, entry by entry."""

JOINING = frozenset(["cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"])
"""Operators that put tensors side by side: each weight is expanded in its own shape."""

LIKE_ANOTHER = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as", "broadcast_to"])
"""Operators that take the kind of their first tensor; the others only lend a shape or a type."""

CHOOSING = frozenset(
    {Tensor.__getitem__, torch.index_select, Tensor.index_select, torch.masked_select,
     Tensor.masked_select, torch.take, Tensor.take}
)  # fmt: skip

ASKING = frozenset(
    {Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}
    | {getattr(Tensor, name).__get__
       for name in ("shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout")}
)  # fmt: skip
"""What tells of a tensor and computes nothing."""

_ASKING_FOR_SIZE = frozenset(
    {Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.shape.__get__}  # type: ignore[attr-defined]
)
"""Those of them that may say how long a tensor is; a loop over one asks for `dim` first."""

APPLYING = frozenset(
    ["linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"]
    + [f"conv{'_transpose' if transposes else ''}{d}d" for d in (1, 2, 3) for transposes in (0, 1)]
    + [f"{kind}_cell" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
)
"""Operators that multiply what has rows or images by a weight."""

LOOKING_UP = frozenset(["__getitem__", "index_select"])
"""Operators that take rows of their first tensor by their last argument."""

EXPANDING = frozenset(["expand", "expand_as", "broadcast_to"])
"""Operators that only broadcast their first tensor."""

REPEATING = frozenset(["repeat", "tile"])
"""Operators that put a tensor beside itself."""

DIRECT = frozenset(
    ["linear", "matmul", "__matmul__", "mm", "bmm", "layer_norm", "group_norm", "prelu"]
    + [f"conv{'_transpose' if transposes else ''}{d}d" for d in (1, 2, 3) for transposes in (0, 1)]
)
"""Operators of which nothing is asked where samples and weights meet but their kernel."""

_LENDING = LIKE_ANOTHER | EXPANDING | REPEATING
"""Operators of which it matters which of their tensors depends on the samples."""

DECIDING = frozenset(
    {"topk", "argmax", "one_hot", "permute", "transpose", "sum", "any", "amax", "gt", "ge", "ne",
     "greater", "greater_equal", "not_equal", "__gt__", "__ge__", "__ne__", "to", "int", "long",
     "bool"}
)  # fmt: skip
"""Operators from a router's numbers to the experts that they choose (`decisions`)."""

_ASKED_ABOUT = frozenset(
    {func.__name__ for func in CHOOSING}
    | {"embedding", "embedding_bag", "view"}
    | _LENDING
    | FAULTY
)
"""Names of operators that need more than to be run, also where no weight is among the tensors."""


_WHOLE = frozenset({"einsum", "embedding_bag"})
"""Functions written in Python that a kernel takes whole."""


def is_entrywise(name: str) -> bool:
    """Whether an operator is one of those, or its form in place or for operands exchanged."""
    plain = name.strip("_")
    return plain in ENTRYWISE or (plain[:1] in "ri" and plain[1:] in ENTRYWISE)


class Traits(NamedTuple):
    """What an operator's name says, for the short way through the interceptor."""

    name: str
    asks: bool
    """Whether it is one of `ASKING`."""
    asks_size: bool
    """Whether the answer may say how long a tensor is."""
    is_short: bool
    """Whether it is only run and noted by its outline, if no weight is among its tensors."""
    moves: bool
    """Whether it then takes one tensor, and numbers of Python's."""
    run: Callable[..., Any]
    """What runs it."""
    decides: bool
    """Whether it may be a step from a router's numbers to what they decide (`decisions`)."""


@functools.lru_cache(4096)  # asked of every operator
def traits_of(func: Callable[..., Any]) -> Traits:
    """Return what is known of an operator whatever it is given."""
    name, asks = getattr(func, "__name__", ""), func in ASKING
    moves = name in MOVING
    is_short = (
        bool(name)
        and name == name_of(func)
        and func is not Tensor.register_hook
        and is_noted_in_outline(name)
        and (is_ordinary(name, of_one_sample_tensor=moves) or func is Tensor.view)
    )
    return Traits(
        name,
        asks,
        func in _ASKING_FOR_SIZE,
        is_short,
        moves,
        view_samples if func is Tensor.view else func,
        name in DECIDING,
    )


@functools.cache  # asked of every operator
def is_ordinary(name: str, *, of_one_sample_tensor: bool) -> bool:
    """Whether an operator is only run and noted where no weight is among its tensors.

    of_one_sample_tensor: whether it takes a single tensor, which depends on the samples. Then it
    takes no entry by the data, and repeats nothing that is the same for all samples.
    """
    if of_one_sample_tensor and (name == "__getitem__" or name in _LENDING):
        return True
    return name not in _ASKED_ABOUT and not writes(name)


def is_written_in_python(func: Callable[..., Any]) -> bool:
    """Whether a function is Python code that only hands on to another torch function."""
    return isinstance(func, types.FunctionType) and func.__name__ not in _WHOLE


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
    cudnn = torch.backends.cudnn.enabled
    return torch.layer_norm, (input, normalized_shape, weight, bias, eps, cudnn)


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
    rest = (running_mean, running_var, training, momentum, eps, torch.backends.cudnn.enabled)
    return torch.batch_norm, (input, weight, bias, *rest)


CALLED_BY: Mapping[Callable[..., Any], Callable[..., Call | None]] = {
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
}
"""Function written in Python -> what gives the call of torch that is all it comes to, or None where
it does more. Frequent ones, whose code need not be run to meet the operator inside."""


def view_samples(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.view`, by a copy where a convolution here has put the channels last."""
    out = tensor.reshape(*args, **kwargs)
    if out.data_ptr() != tensor.data_ptr():
        mark(out).is_copy = True
    return out


def refuse_write_through_copy(func: Callable[..., Any], args: Any) -> None:
    """A write into such a copy would not reach the tensor that the model means.

    Raises:
        SamplesNotSeparable: there is one.
    """
    if writes(getattr(func, "__name__", "")):
        for tensor in tensors_of(args[:1]):
            base = tensor if tensor._base is None else tensor._base
            if marks_of(tensor).is_copy or marks_of(base).is_copy:
                raise SamplesNotSeparable(
                    "the model writes through a view of a convolution's output"
                )


@functools.cache  # asked of every operator
def writes(name: str) -> bool:
    """Whether an operator of this name works in place."""
    return (
        name == "__setitem__"
        or name.startswith("__i")
        or re.fullmatch(r"\w*[a-z0-9]_", name) is not None
    )


def as_type(args: Any, kwargs: Any) -> bool:
    """Whether a view is of another type, not of another shape."""
    return any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples and lists. Called for every operator: it must be fast."""
    if isinstance(tree, Tensor):
        return [tree]
    tensors: list[Tensor] = []
    if isinstance(tree, (tuple, list)):
        for branch in tree:
            if isinstance(branch, Tensor):
                tensors.append(branch)
            elif isinstance(branch, (tuple, list)):
                tensors += tensors_of(branch)
    return tensors
