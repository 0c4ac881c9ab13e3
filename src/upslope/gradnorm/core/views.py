"""Arguments of torch functions: the tensors in them, views of them, and writes into them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.layout import SamplesNotSeparable


def viewed(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.view`, by a copy where a convolution here has put the channels last."""
    out = tensor.reshape(*args, **kwargs)
    if out.data_ptr() != tensor.data_ptr():
        out.__dict__["_upslope_copy"] = True
    return out


def refuse_write_through_copy(func: Callable[..., Any], args: Any) -> None:
    """A write into such a copy would not reach the tensor that the model means.

    Raises:
        SamplesNotSeparable: there is one.
    """
    if writes(getattr(func, "__name__", "")):
        for tensor in tensors_of(args[:1]):
            base = tensor if tensor._base is None else tensor._base
            if "_upslope_copy" in (tensor.__dict__ | base.__dict__):
                raise SamplesNotSeparable(
                    "the model writes through a view of a convolution's output"
                )


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
