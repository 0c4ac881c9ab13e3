"""How many labels a strategy needs for what the reference reaches, with an interval.

The target is the reference's figure at a share of its last budget. Within each seed the strategy's
curve, read with straight lines, less that seed's target is a difference at every number of labels.
The estimate is the first number at which the mean difference is 0 or more. The interval holds the
numbers at which the difference is not shown to be other than 0: from the first whose t interval
reaches up to 0, to the first from which on all t intervals lie at or above 0. A strategy that does
not get there within its budgets has no upper end, and perhaps no estimate: infinity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from upslope.errors import DataError
from upslope.evaluation.curves import (
    ROUNDING,
    check_curves,
    difference_of,
    mean_interval,
)
from upslope.evaluation.floats import as_number


@dataclass(frozen=True)
class LabelsNeeded:
    """Numbers of labels; `low` and `high` are NaN for one seed, infinity where not reached.

    reference: the labels that the reference has at its target.
    """

    labels: float
    low: float
    high: float
    reference: float


def labels_needed(
    budgets: ArrayLike,
    curves: ArrayLike,
    reference: ArrayLike,
    share: float = 1.0,
    confidence: float = 0.95,
) -> LabelsNeeded:
    """Return the labels at which a strategy reaches the reference's figure.

    Args:
        budgets: (n_budgets,), whole numbers, strictly increasing.
        curves, reference: (n_seeds, n_budgets), the same seeds in the same order.
        share: of the last budget, at which the reference's figure is the target.
        confidence: of the interval.

    Raises:
        DataError: as for `area`; shapes that differ; a share that lies before the first budget.
    """
    b, ours = check_curves(budgets, curves)
    _, theirs = check_curves(budgets, reference)
    if ours.ndim != 2 or not len(ours) or ours.shape != theirs.shape:
        raise DataError(
            "Expected curves of the same seeds, (seeds, budgets), but got shapes "
            f"{ours.shape} and {theirs.shape}."
        )
    share = as_number(share, "share")
    at = share * b[-1]
    if not b[0] <= at <= b[-1]:
        raise DataError(
            f"Expected `share` of the last budget, {share} of {b[-1]:g}, to be between the first "
            f"budget, {b[0]:g}, and the last."
        )
    labels = np.union1d(np.arange(np.ceil(b[0]), b[-1] + 1), b)
    targets = np.array([np.interp(at, b, curve) for curve in theirs])
    read = np.stack([np.interp(labels, b, curve) for curve in ours])
    differences = difference_of(read, np.broadcast_to(targets[:, None], read.shape))
    interval = mean_interval(differences, confidence)
    # Differences of seeds that cancel leave rounding of the figures.
    zero = -ROUNDING * float(np.abs(targets).max())
    return LabelsNeeded(
        _first(labels, interval.mean >= zero),
        _first(labels, interval.high >= zero) if interval.n > 1 else float("nan"),
        _from_there_on(labels, interval.low >= zero) if interval.n > 1 else float("nan"),
        float(at),
    )


def _first(labels: np.ndarray, is_reached: np.ndarray) -> float:
    return float(labels[int(is_reached.argmax())]) if is_reached.any() else float("inf")


def _from_there_on(labels: np.ndarray, is_reached: np.ndarray) -> float:
    """Return the first label from which on all are reached."""
    if not is_reached[-1]:
        return float("inf")
    budgets_below = np.flatnonzero(~is_reached)
    return float(labels[budgets_below[-1] + 1] if len(budgets_below) else labels[0])
