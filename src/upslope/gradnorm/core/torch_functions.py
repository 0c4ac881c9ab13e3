"""Functions of torch that are written in Python, run so that what they call is intercepted."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

_WHOLE = frozenset({"einsum", "embedding_bag"})
"""Those that a kernel takes whole."""


def is_written_in_python(func: Callable[..., Any]) -> bool:
    """Whether a function is Python code that only hands on to another torch function."""
    return isinstance(func, types.FunctionType) and func.__name__ not in _WHOLE


@functools.cache
def without_torch_function_dispatch(func: types.FunctionType) -> Callable[..., Any]:
    """A copy of a torch function written in Python, without its hand-over to the mode.

    `torch.nn.functional` asks `has_torch_function` first and would come back here for ever.
    """
    never = {name: _never for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **never}, func.__name__, func.__defaults__,
        func.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _never(*_: Any) -> bool:
    return False
