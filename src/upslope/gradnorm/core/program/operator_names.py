"""Names of torch's operators, by what a program notes of them (`program`).

Asked by `program`, and by those that decide once for each function what is noted of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from upslope.gradnorm.core.program.steering import SIZED_BY_DATA

MOVING = frozenset(
    {
        "__getitem__", "__setitem__", "cat", "chunk", "concat", "concatenate", "expand", "flatten",
        "flip", "fliplr", "flipud", "gather", "index_add", "index_add_", "index_copy",
        "index_copy_", "index_fill", "index_put", "index_put_", "index_reduce", "index_reduce_",
        "index_select", "masked_scatter", "masked_scatter_", "masked_select", "movedim",
        "moveaxis", "narrow", "permute", "put", "put_", "repeat", "repeat_interleave", "reshape",
        "roll", "rot90", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce",
        "scatter_reduce_", "segment_reduce", "select", "split", "squeeze", "stack",
        "swapaxes", "swapdims", "t", "take", "take_along_dim", "tile", "transpose", "unbind",
        "unflatten", "unfold", "unsqueeze", "view",
    }
)  # fmt: skip
"""Operators that put entries into other places."""

LEAVING = frozenset(
    {"__bool__", "__float__", "__index__", "__int__", "__contains__", "item", "tolist", "equal",
     "allclose", "is_nonzero"}
)  # fmt: skip
"""Operators that make numbers of Python of a tensor's."""

SIZED_OPERATORS = frozenset({"arange", "empty", "full", "linspace", "ones", "range", "zeros"})
"""Operators that make tensors of the sizes that they are given."""

POINTING = frozenset({"data_ptr", "untyped_storage"})
"""Operators that say where numbers lie, and seldom what they are."""

UNREADABLE = frozenset(
    {"__array__", "__dlpack__", "__reduce_ex__", "data_ptr", "numpy", "untyped_storage"}
)
"""Operators behind which the numbers of a tensor go where nothing is seen."""

DRAWING_OPERATORS = frozenset({"multinomial", "randint", "randperm"})
"""Operators whose random numbers may serve as an order of samples."""

BY_INDEX = frozenset(
    {
        "gather", "index_add", "index_add_", "index_copy", "index_copy_", "index_put",
        "index_put_", "index_reduce", "index_reduce_", "masked_scatter", "masked_scatter_",
        "narrow", "put", "put_", "scatter", "scatter_", "scatter_add", "scatter_add_",
        "scatter_reduce", "scatter_reduce_", "segment_reduce", "take_along_dim", "__setitem__",
    }
)  # fmt: skip
"""Operators that put entries where an index says: with one made of samples, the data decide."""

BY_STRIDES = frozenset(
    {"as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter", "resize_", "set_"}
)
"""Operators that take entries from where they lie in memory: of a tensor that was transposed,
others than of one that was not."""

LOOKING_UP = frozenset({"embedding", "embedding_bag"})
"""Operators that look rows up in a table: of a table made of samples, the data decide which."""

_WITHOUT_NAME = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch.ScriptFunction)
"""Functions whose names say nothing: operators by overload, custom ones, compiled scripts."""

NAMELESS = "(no name)"
"""The name of all of these."""

OF_INTEREST = (
    MOVING | LEAVING | SIZED_OPERATORS | UNREADABLE | BY_INDEX | BY_STRIDES | LOOKING_UP
    | SIZED_BY_DATA | {NAMELESS}
)  # fmt: skip
"""Operators of which more is noted than shapes and options."""


def is_noted_in_outline(name: str) -> bool:
    """Whether `Program.note` takes in nothing of an operator on dense tensors but its outline.

    Or, of an operator that moves entries, if it takes one tensor and numbers of Python's alone.
    """
    return is_only_outlined(name) or (name in MOVING and name not in BY_INDEX)


def is_only_outlined(name: str) -> bool:
    """Whether `Program.note` takes in nothing of an operator but its outline, whatever it takes."""
    return name not in OF_INTEREST and name not in DRAWING_OPERATORS


def name_of(func: Callable[..., Any]) -> str:
    """The name under which an operator is known."""
    if isinstance(func, _WITHOUT_NAME):
        return NAMELESS
    return getattr(func, "__name__", "") or str(func)


def label_of(func: Callable[..., Any]) -> str:
    """The name under which an operator is noted: of `x.T` and `x.real`, which share one, two."""
    name = name_of(func)
    attribute = getattr(getattr(func, "__self__", None), "__name__", "")
    return f"{name} {attribute}" if name in {"__get__", "__set__"} else name
