"""Checks of labels, and of the criterion that takes them: errors that name what is wrong.

Called by `losses`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import in_words

_IGNORE_INDEX = -100
"""The label that PyTorch's cross-entropy leaves out."""


def bounds_of_labels(targets: Any) -> tuple[int, int]:
    """Return the least and the largest label of those that count; zeros where there is none.

    Read once, and not in the loss: numbers that leave for Python there would make programs differ.
    """
    if not isinstance(targets, Tensor):
        raise GradientNormError(
            f"Expected labels in a tensor but got {in_words(targets)}. `torch.as_tensor(labels)`."
        )
    if targets.is_floating_point() or targets.is_complex():
        return 0, 0
    labels_in_sum = targets[targets != _IGNORE_INDEX]
    if not labels_in_sum.numel():
        return 0, 0
    return int(labels_in_sum.min()), int(labels_in_sum.max())


def check_labels(logits: Tensor, targets: Tensor, bounds: tuple[int, int]) -> None:
    """Refuse labels that cross-entropy does not take.

    Raises:
        GradientNormError: they are of another number, type or shape, or of classes that there are
            not.
    """
    if targets.dim() == 0 or len(targets) != len(logits):
        count = len(targets) if targets.dim() else "a single number"
        raise GradientNormError(
            f"Expected a label for each of the {len(logits)} samples but got {count}."
        )
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise GradientNormError(
                f"Expected labels that are classes, of type torch.int64, but got {targets.dtype} "
                f"of shape {tuple(targets.shape)}: probabilities have the shape of the logits, "
                f"{tuple(logits.shape)}. Give `labels.long()`, or a criterion for such targets."
            )
        return
    if targets.dtype not in (torch.int64, torch.uint8):
        raise GradientNormError(
            f"Expected labels of type torch.int64 but got {targets.dtype}. Give `labels.long()`."
        )
    shape = (len(logits), *logits.shape[2:])
    if targets.shape != shape:
        raise GradientNormError(
            f"Expected labels of shape {shape}, for logits of shape {tuple(logits.shape)} with the "
            f"classes in dimension 1, but got {tuple(targets.shape)}."
        )
    lowest, highest = bounds
    if lowest < 0 or highest >= logits.shape[1]:
        wrong = lowest if lowest < 0 else highest
        raise GradientNormError(
            f"Expected labels in 0..{logits.shape[1] - 1}, for logits of {logits.shape[1]} "
            f"classes, but got {wrong}. A label that is {_IGNORE_INDEX} does not count."
        )


def require_criterion(criterion: Any) -> None:
    """Refuse a criterion that cannot be called as the losses here call it.

    Raises:
        GradientNormError: it is not callable, or takes other arguments.
    """
    call_in_words = (
        'Expected `criterion` to be called as `criterion(logits, labels, reduction="none")` but '
    )
    if not callable(criterion):
        raise GradientNormError(f"{call_in_words}got {in_words(criterion)}.")
    is_module = isinstance(criterion, torch.nn.Module)
    try:
        signature = inspect.signature(criterion.forward if is_module else criterion)
    except (TypeError, ValueError):  # of what is written in C nothing is known
        return
    try:
        signature.bind(None, None, reduction="none")
    except TypeError as error:
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise GradientNormError(
            f"{call_in_words}{name} takes {signature}. If it returns one loss per sample, give "
            "`lambda logits, labels, reduction: criterion(logits, labels)`; a module is one with "
            '`reduction="none"`.'
        ) from error
