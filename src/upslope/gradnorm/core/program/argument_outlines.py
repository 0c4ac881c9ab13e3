"""Outlines of an operator's arguments, as a program notes them: shapes, options, constant indices.

Made by `program`, and by `trace/tensor_kinds` for most operators.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.gradnorm.core.program.indices import hash_numbers, is_made_of_samples

AS_IT_IS = frozenset({bool, int, str, torch.dtype, type(None)})
"""Types of arguments that are their own outline, but for `MINUS_ONE`."""

MINUS_ONE = "minus one"
"""What stands for -1. Outlines are compared by their hashes, and Python has one hash for -1 and -2:
a softmax over the classes would be taken for one over the samples."""


def outline_of(value: Any) -> Any:
    """What is known of an argument of an operator that moves nothing: its shape, or its value.

    A number with a fraction may change with every batch, and decides on no place. Zero and one may
    switch an input off, as the factors of `addmm` do, and are kept apart; so are infinities.
    """
    kind = type(value)
    if kind in AS_IT_IS:  # asked of every argument of every operator
        return value if value != -1 else MINUS_ONE
    if kind is float:
        # As text, for each NaN has a hash of its own.
        return value if value in (0.0, 1.0) else kind if math.isfinite(value) else repr(value)
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, (tuple, list)):
        return tuple(map(outline_of, value))
    if isinstance(value, (float, complex)):
        return value if value in (0, 1) else kind if cmath.isfinite(value) else repr(value)
    return descriptor_of(value)


def descriptor_of(value: Any) -> Any:
    """What is known of an argument before the samples are: sizes, dimensions, constant indices."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or is_made_of_samples(value):
            return tuple(value.shape)
        return tuple(value.shape), hash_numbers(value)
    if isinstance(value, (tuple, list)):
        return tuple(map(descriptor_of, value))
    if isinstance(value, float) and math.isnan(value):
        return repr(value)
    if isinstance(value, (int, float, str, bool, torch.dtype)) or value is None:
        return value if value != -1 else MINUS_ONE
    if isinstance(value, (np.ndarray, np.generic)):  # whose text leaves out what is in the middle
        array = np.asarray(value)
        return array.shape, array.dtype.str, hash(array.tobytes())
    return repr(value)
