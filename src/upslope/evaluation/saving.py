"""How many labels a strategy saves against random ones, by one labelled random sample.

The random sample (m labels) serves both as labels chosen at random and as what models are measured
on. In each of J random splits a model learns from k of the sample and is measured on the others;
each model of the strategy's first labels is measured on the same others. The difference of the two
accuracies, the strategy's with n labels less the random one's with k, has over the splits a mean
and the variance

    (1 / J + (m - k) / k) * S ** 2

with S ** 2 the variance over splits: splits share their labels, and the plain variance of a mean
would be too small (Nadeau and Bengio, Machine Learning 52, 2003). Student's t with J - 1 degrees of
freedom gives the interval. S is half of one of the m - k samples at least: where no model erred on
so few, or all on the same, the splits do not vary, and the interval would have no width. The labels
needed are the smallest n at which the mean difference is 0 or more, between grid points by a
straight line; their interval holds the n at which 0 is inside the interval of the difference. The
saving is 1 - n / k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.curves import ROUNDING
from upslope.evaluation.floats import (
    as_count,
    as_floats,
    as_share,
    check_answers,
    is_increasing,
)


@dataclass(frozen=True)
class Saving:
    """What a strategy saves. random_labels: k, which the random models learnt from.

    accuracy: theirs. difference, difference_low, difference_high: the strategy's accuracy with k
    labels less theirs, with its interval; NaN where the strategy has fewer than k labels. needed,
    needed_low, needed_high: labels of the strategy that do as much; infinity where it has not
    got there yet. of: labels of the random sample. confidence: of the intervals.
    method: how they were made.
    """

    random_labels: int
    accuracy: float
    difference: float
    difference_low: float
    difference_high: float
    needed: float
    needed_low: float
    needed_high: float
    of: int
    confidence: float
    method: str = "repeated splits of the control slice, Nadeau and Bengio's variance"

    @property
    def share(self) -> float:
        """Return the share of the random labels that is saved; minus infinity where unknown."""
        return 1 - self.needed / self.random_labels


def measure_saving(
    labels: ArrayLike,
    correct: ArrayLike,
    random_labels: int,
    random_correct: ArrayLike,
    confidence: float = 0.95,
) -> Saving:
    """Return how many labels of a strategy do as much as so many random ones.

    Args:
        labels: (n_models,), numbers of labels of the strategy's models, strictly increasing.
        correct: (n_models, m), whether such a model is right on a sample of the random sample.
        random_labels: k, how many of the random sample each random model learnt from.
        random_correct: (n_splits, m), whether the random model of a split is right; NaN for the
            samples that it learnt from.
        confidence: of the intervals.

    Raises:
        DataError: shapes that do not fit, no model, fewer than two splits, a split that measures
            nothing, answers outside of 0 to 1, as many random labels as samples, or a confidence
            outside (0, 1).
    """
    n, ours = as_floats(labels, "labels"), as_floats(correct, "correct")
    theirs = as_floats(random_correct, "random_correct")
    if (
        theirs.ndim != 2
        or len(theirs) < 2
        or n.ndim != 1
        or not len(n)
        or ours.shape != (len(n), theirs.shape[1])
        or not is_increasing(n)
    ):
        raise DataError(
            "Expected increasing labels, `correct` (models, samples) and `random_correct` (two "
            f"splits or more, samples) but got shapes {n.shape}, {ours.shape} and {theirs.shape}."
        )
    confidence = as_share(confidence, "confidence")
    random_labels = as_count(random_labels, "random_labels", 1)
    is_tested = ~np.isnan(theirs)
    check_answers(ours, "correct")
    check_answers(theirs[is_tested], "random_correct")
    counts = is_tested.sum(axis=1)
    if random_labels >= theirs.shape[1] or not counts.all():
        raise DataError(
            f"Expected fewer random labels than the {theirs.shape[1]} samples, so that each split "
            f"measures on some, but got {random_labels} labels and splits that measure on "
            f"{counts.min()} samples at least."
        )
    random_accuracy = np.where(is_tested, theirs, 0).sum(axis=1) / counts
    differences = (ours @ is_tested.T) / counts - random_accuracy  # (n_models, n_splits)
    splits, m = theirs.shape
    spread = np.maximum(differences.std(axis=1, ddof=1), 0.5 / counts.mean())
    variance = spread**2 * (1 / splits + (m - random_labels) / random_labels)
    half = stats.t.ppf((1 + confidence) / 2, splits - 1) * np.sqrt(variance)
    mean = differences.mean(axis=1)
    mean[np.abs(mean) <= ROUNDING] = 0.0  # of shares: what cancels leaves rounding
    k = float(random_labels)
    at_k = [
        float(np.interp(k, n, values, left=np.nan, right=np.nan))
        for values in (mean, mean - half, mean + half)
    ]
    return Saving(
        random_labels,
        float(random_accuracy.mean()),
        at_k[0],
        at_k[1],
        at_k[2],
        _first(n, mean),
        _first(n, mean + half),
        _from_there_on(n, mean - half),
        m,
        confidence,
    )


def _first(n: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """The first n at which a broken line is 0 or more; infinity where it is nowhere."""
    at = np.flatnonzero(values >= 0)
    if not len(at):
        return float("inf")
    return _crossing(n, values, int(at[0]))


def _from_there_on(n: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """The n from which on a broken line stays 0 or more; infinity where there is none."""
    below = np.flatnonzero(values < 0)
    if not len(below):
        return float(n[0])
    return float("inf") if below[-1] == len(n) - 1 else _crossing(n, values, int(below[-1]) + 1)


def _crossing(n: NDArray[np.float64], values: NDArray[np.float64], i: int) -> float:
    if i == 0:
        return float(n[0])
    low, high = values[i - 1], values[i]
    return float(n[i - 1] + (n[i] - n[i - 1]) * (0 - low) / (high - low))
