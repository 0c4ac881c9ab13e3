"""Kinds of torch's operators, and their arguments, as the interceptor tells them apart.

Which operators are of one kind, by what they do to the entries of tensors; which are Python code
that only hands on to others; and which arguments hold tensors, views of them, and writes into them.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.layouts.layout import SamplesNotSeparable
from upslope.gradnorm.core.tensor_marks import mark, marks_of
from upslope.gradnorm.torch_faults import NAMES as FAULTY

ENTRYWISE = frozenset(
    {
        "add", "sub", "rsub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "where",
        "lerp", "addcmul", "addcdiv", "float_power", "atan2", "hypot", "fmod", "remainder",
        "logaddexp", "copysign", "xlogy", "clamp", "clip", "masked_fill", "cosine_similarity",
        "pairwise_distance", "linalg_cross", "broadcast_tensors", "copy",
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

APPLYING = frozenset(
    ["linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"]
    + [f"conv{'_transpose' if transposes else ''}{d}d" for d in (1, 2, 3) for transposes in (0, 1)]
    + [f"{kind}_cell" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
)
"""Operators that multiply what has rows or images by a weight."""

EXPANDING = frozenset(["expand", "expand_as", "broadcast_to"])
"""Operators that only broadcast their first tensor."""

REPEATING = frozenset(["repeat", "tile"])
"""Operators that put a tensor beside itself."""

LENDING = LIKE_ANOTHER | EXPANDING | REPEATING
"""Operators of which it matters which of their tensors depends on the samples."""

PACKING = "_pack_padded_sequence"
"""The operator that makes a packed sequence of samples of unequal length."""

_ALWAYS_ASKED_ABOUT = {"embedding", "embedding_bag"} | FAULTY
ASKED_OF_SAMPLES = frozenset(
    {func.__name__ for func in CHOOSING} - {"__getitem__"} | _ALWAYS_ASKED_ABOUT | {PACKING}
)
"""Names of operators that need more than to be run, also where no weight is among the tensors."""

ASKED_OF_CONSTANTS = frozenset(EXPANDING | REPEATING | _ALWAYS_ASKED_ABOUT)
"""Names of operators that need more than to be run, where all their tensors are constants."""


_WHOLE = frozenset({"einsum", "embedding_bag"})
"""Functions written in Python that a kernel takes whole."""


def is_entrywise(name: str) -> bool:
    """Whether an operator is one of `ENTRYWISE`, in place, or with its operands exchanged."""
    plain = name.strip("_")
    return plain in ENTRYWISE or (plain[:1] in "ri" and plain[1:] in ENTRYWISE)


def is_written_in_python(func: Callable[..., Any]) -> bool:
    """Whether a function is Python code that only hands on to another torch function."""
    return isinstance(func, types.FunctionType) and func.__name__ not in _WHOLE


def view_samples(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.view`, by a copy where a convolution here has put the channels last."""
    try:
        return tensor.view(*args, **kwargs)
    # Either no view has this shape, or no tensor at all, which `reshape` would say as well.
    except RuntimeError:
        out = tensor.reshape(*args, **kwargs)
    mark(out).is_copy = True
    return out


def refuse_write_through_copy(args: tuple[Any, ...]) -> None:
    """Refuse a write into a copy that the model takes for a view (`view_samples`).

    It would not reach the tensor that the model means. args: of an operator that works in place.

    Raises:
        SamplesNotSeparable: its first argument is such a copy, or a view of one.
    """
    for tensor in tensors_of(args[:1]):
        base = tensor if tensor._base is None else tensor._base
        if marks_of(tensor).is_copy or marks_of(base).is_copy:
            raise SamplesNotSeparable("the model writes through a view of a convolution's output")


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
