"""One learning curve, and the mean of several.

A curve is a figure (accuracy, mIoU) at increasing budgets, that is, numbers of labels. Curves of
one strategy over n seeds are an array (n_seeds, n_budgets).

Area under the budget curve, normalised so that it is a figure of the same unit as the curve:

    area = 1 / (b_T - b_1) * sum_t (b_{t+1} - b_t) * (a_t + a_{t+1}) / 2

the mean figure over the budgets between the first and the last, by the trapezoid rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.floats import as_floats, as_number, as_share

Array = NDArray[np.float64]
ROUNDING = 1e-12
"""Relative: figures that differ by less are equal, summed up in another order perhaps."""
INTERVAL_SEEDS = 3
"""Seeds from which reports tell an interval: with two it says more of Student than of them."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its confidence interval; `low` and `high` are NaN for one seed.

    mean, low, high: the shape of one seed's value. n: seeds. confidence: share, 0.95 by default.
    """

    mean: Array
    low: Array
    high: Array
    n: int
    confidence: float


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean over the first axis (seeds), with its interval: mean +- t * sd / sqrt(n).

    With the few seeds that active learning affords, the t interval is the honest plain choice: a
    bootstrap over five values resamples the same five and comes out too narrow.

    Args:
        values: (n_seeds, ...).
        confidence: between 0 and 1.

    Raises:
        DataError: no seed, a value that is not finite, or a confidence outside (0, 1).
    """
    array = _finite(values, "values")
    if array.ndim == 0 or len(array) == 0:
        raise DataError("Expected `values` to hold at least one seed but got none.")
    confidence = as_share(confidence, "confidence")
    n = len(array)
    mean = array.mean(axis=0)
    if n == 1:
        no_value = np.full_like(mean, np.nan)
        return Interval(mean, no_value, no_value, n, confidence)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * array.std(axis=0, ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, confidence)


def told_interval(interval: Interval, spread: bool | NDArray[np.bool_] = True) -> Interval:
    """Return the interval as reports tell it: the mean alone with fewer than `INTERVAL_SEEDS`.

    spread: (...), as `have_spread` says; False where seeds have one value, of which an interval
        would have no width.
    """
    has_interval = np.logical_and(interval.n >= INTERVAL_SEEDS, spread)
    low, high = (np.where(has_interval, end, np.nan) for end in (interval.low, interval.high))
    return replace(interval, low=low, high=high)


def have_spread(values: ArrayLike) -> NDArray[np.bool_]:
    """Return where seeds differ by more than rounding: there a t interval or test can be made.

    Figures on a test set are multiples of a share, so that seeds may have one value by chance.
    Student's t would take it for certain, with an interval of no width and p = 0.

    values: (n_seeds, ...), of the size of 1. Returns: (...).

    Raises:
        DataError: no seed, or a value that is no number.
    """
    v = as_floats(values, "values")
    if v.ndim == 0 or len(v) == 0:
        raise DataError("Expected `values` to hold at least one seed but got none.")
    size = np.maximum(1.0, np.abs(v).max(axis=0))
    return np.asarray(np.ptp(v, axis=0) > ROUNDING * size)


def area(budgets: ArrayLike, curves: ArrayLike) -> Array:
    """Normalised area under the budget curve (formula at the head of the module).

    Args:
        budgets: (n_budgets,), strictly increasing.
        curves: (..., n_budgets).

    Returns:
        (...): one area a curve, in the unit of the curve.

    Raises:
        DataError: budgets that do not increase, fewer than two, or lengths that differ.
    """
    b, a = check_curves(budgets, curves)
    return np.asarray(np.trapezoid(a, b, axis=-1) / (b[-1] - b[0]))


def labels_to_reach(budgets: ArrayLike, curve: ArrayLike, target: float) -> float:
    """The smallest budget at which the curve, read with straight lines, reaches `target`.

    Args:
        budgets: (n_budgets,), strictly increasing.
        curve: (n_budgets,).
        target: in the unit of the curve.

    Returns:
        The number of labels; NaN where the curve never reaches the target; the first budget
        where it starts at or above it (fewer labels may do, the curve cannot tell).

    Raises:
        DataError: as for `area`; several curves; a target that is no finite number.
    """
    b, a = check_curves(budgets, curve)
    if a.ndim != 1:
        raise DataError(
            f"Expected one curve, a figure for each budget, but got curves of shape {a.shape}. "
            "Take their mean over the seeds, or one after the other."
        )
    target = as_number(target, "target")
    budgets_at_target = np.flatnonzero(a >= target - ROUNDING * abs(target))
    if len(budgets_at_target) == 0:
        return float("nan")
    i = int(budgets_at_target[0])
    if i == 0:
        return float(b[0])
    share = min(1.0, (target - a[i - 1]) / (a[i] - a[i - 1]))
    return float(b[i - 1] + share * (b[i] - b[i - 1]))


def difference_of(values: Array, reference: Array) -> Array:
    """Return values less reference, both of one shape; 0 where they differ by rounding alone."""
    difference = values - reference
    size = np.maximum(np.abs(values), np.abs(reference))
    return np.where(np.abs(difference) <= ROUNDING * size, 0.0, difference)


def check_curves(budgets: Any, curves: Any) -> tuple[Array, Array]:
    """Return budgets and curves as arrays; raises as `area` does."""
    b, a = _finite(budgets, "budgets"), _finite(curves, "curves")
    if b.ndim != 1 or len(b) < 2:
        raise DataError(f"Expected `budgets` to hold two or more numbers but got {b.tolist()}.")
    if not bool((np.diff(b) > 0).all()):
        raise DataError(f"Expected `budgets` to increase strictly but got {b.tolist()}.")
    if a.ndim == 0 or a.shape[-1] != len(b):
        raise DataError(
            f"Expected one figure for each of the {len(b)} budgets but got curves of shape "
            f"{a.shape}."
        )
    return b, a


def _finite(values: Any, name: str) -> Array:
    array = as_floats(values, name)
    if not bool(np.isfinite(array).all()):
        raise DataError(
            f"Expected `{name}` to be finite but {int((~np.isfinite(array)).sum())} of "
            f"{array.size} are NaN or infinite. Leave out the runs that diverged, and say so."
        )
    return array
