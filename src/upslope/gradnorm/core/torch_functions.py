"""Torch's own functions: which work entry by entry, and how to run those written in Python.

Asked by `vmap/`, `trace/` and `proofs/`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES, tree_flatten

ENTRYWISE = frozenset(
    {
        "abs", "add", "celu", "clamp", "clamp_max", "clamp_min", "clip", "clone", "contiguous",
        "cos", "detach", "div", "double", "elu", "erf", "exp", "expm1", "float", "gelu",
        "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log", "log1p", "logsigmoid",
        "maximum", "minimum", "mish", "mul", "multiply", "neg", "negative", "pow", "reciprocal",
        "relu", "relu6", "rsqrt", "selu", "sigmoid", "sign", "silu", "sin", "softplus", "softsign",
        "sqrt", "square", "sub", "subtract", "tanh", "tanhshrink", "to", "true_divide", "truediv",
        "type_as",
    }
)  # fmt: skip
"""Operators each of whose entries is made of those in its own place; none reduces in any form."""

ENTRYWISE_IN_PLACE = frozenset(
    f"{name}_" for name in ("add", "clamp", "div", "gelu", "mul", "relu", "sigmoid", "silu", "sub",
                            "tanh")
)  # fmt: skip

ENTRYWISE_BY_SIGN = frozenset(
    f"__{side}{name}__"
    for side in ("", "r", "i")
    for name in ("add", "mul", "pow", "sub", "truediv", "neg")
)


@functools.cache
def without_torch_function_dispatch(func: types.FunctionType) -> Callable[..., Any]:
    """A copy of a torch function written in Python, without its hand-over to the mode.

    `torch.nn.functional` asks `has_torch_function` first and would come back here for ever.
    `torch.meshgrid` and a few more leave the asking to a helper, which hands over in their name.
    """
    helpers = {
        name: _without_asking(helper)
        for name in func.__code__.co_names
        if isinstance(helper := func.__globals__.get(name), types.FunctionType)
        and {func.__name__, "handle_torch_function"} <= set(helper.__code__.co_names)
    }
    return _without_asking(func, helpers)


def _without_asking(
    func: types.FunctionType, helpers: Mapping[str, Callable[..., Any]] = MappingProxyType({})
) -> Callable[..., Any]:
    """A copy of a function that never asks `has_torch_function`, and calls these helpers."""
    never = {name: _never for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **never, **helpers}, func.__name__,
        func.__defaults__, func.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _never(*_: Any) -> bool:
    return False


def tensors_among(tree: Any) -> list[Tensor]:
    """Return the tensors in an operator's arguments, in the order of `tree_flatten`.

    Called for every operator: `tree_flatten` itself takes longer than a small operator.
    """
    if isinstance(tree, Tensor):
        return [tree]
    kind = type(tree)
    if kind is tuple or kind is list or kind is dict:
        tensors: list[Tensor] = []
        for branch in tree.values() if kind is dict else tree:
            if isinstance(branch, Tensor):
                tensors.append(branch)
            elif type(branch) in SUPPORTED_NODES:
                tensors += tensors_among(branch)
        return tensors
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]
