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
"""Types of arguments that are their own outline."""


def outline_of(value: Any) -> Any:
    """What is known of an argument of an operator that moves nothing: its shape, or its value.

    A number with a fraction may change with every batch, and decides on no place. Zero and one may
    switch an input off, as the factors of `addmm` do, and are kept apart; so are infinities.
    """
    kind = type(value)
    if kind in AS_IT_IS:  # asked of every argument of every operator
        return value
    if kind is float:
        return value if value in (0.0, 1.0) or not math.isfinite(value) else kind
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, (tuple, list)):
        return tuple(map(outline_of, value))
    if isinstance(value, (float, complex)):
        return value if value in (0, 1) or not cmath.isfinite(value) else kind
    return descriptor_of(value)


def descriptor_of(value: Any) -> Any:
    """What is known of an argument before the samples are: sizes, dimensions, constant indices."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or is_made_of_samples(value):
            return tuple(value.shape)
        return tuple(value.shape), hash_numbers(value)
    if isinstance(value, (tuple, list)):
        return tuple(map(descriptor_of, value))
    if isinstance(value, (int, float, str, bool, torch.dtype)) or value is None:
        return value
    if isinstance(value, (np.ndarray, np.generic)):  # whose text leaves out what is in the middle
        array = np.asarray(value)
        return array.shape, array.dtype.str, hash(array.tobytes())
    return repr(value)
