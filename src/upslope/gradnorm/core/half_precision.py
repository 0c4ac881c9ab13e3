"""Half precision, as autocast has it: in which type products are computed, and losses that are not.

Asked by kernels whose operators autocast does not see to, by the tape, and for each call with a
`dtype` (`arguments`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from upslope.gradnorm.core.model_io import Loss

HALF_TYPES = frozenset({torch.bfloat16, torch.float16})

_is_entered: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device: asked of each use of a weight, it must be fast."""


def autocast_type(x: Tensor) -> torch.dtype | None:
    """Return the type in which autocast has products of a tensor computed; None where it is off.

    Or where they stay as they are: numbers of float64, and complex ones.
    """
    if not (_is_entered() and torch.is_autocast_enabled(x.device.type)):
        return None
    is_cast = x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if is_cast else None


def upcast(output: Tensor) -> Tensor:
    """Return an output of a model in float32, if it is in half precision."""
    return output.float() if output.dtype in HALF_TYPES else output


def in_single_precision(loss: Loss, device: str) -> Loss:
    """Return the same loss, computed in float32 where outputs are in half precision.

    device: the kind of device on which autocast is left for the loss.
    """
    whole = functools.partial(_compute_in_single, loss, device)
    if getattr(loss, "label_free", False):
        whole.label_free = True  # type: ignore[attr-defined]
    if (mark := getattr(loss, "rows_of_labels", None)) is not None:
        labels, of_labels = mark
        whole.rows_of_labels = (  # type: ignore[attr-defined]
            labels,
            lambda some_labels: in_single_precision(of_labels(some_labels), device),
        )
    return whole


def _compute_in_single(loss: Loss, device: str, outputs: Any) -> Tensor:
    with torch.autocast(device, enabled=False):
        return loss(tree_map_only(Tensor, upcast, outputs))
