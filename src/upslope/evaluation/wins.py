"""Who beats whom how often: over seeds and budgets (win matrix), and over data sets (ranks).

The win matrix holds the share of (seed, budget) pairs in which the row's figure is above the
column's; equal figures count half, so that an entry and its mirror image sum to 1.

Over several cells (data sets at a range of budgets), strategies are ranked in each, 1 for the best,
ties sharing the mean; two of k strategies whose mean ranks over N cells differ by less than

    CD = q sqrt(k (k + 1) / (6 N)),    q: the studentised range's quantile over sqrt(2)

are not shown to differ (Nemenyi's test; Demsar, JMLR 7, 2006). It only means something where the
Friedman test says that any strategies differ at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.curves import Array, difference_of
from upslope.evaluation.floats import as_count, as_floats, as_share


def win_matrix(curves: Mapping[str, ArrayLike], first: int = 0) -> Array:
    """Return the share of (seed, budget) pairs in which each strategy beats each other.

    Args:
        curves: strategy -> (n_seeds, n_budgets), the same seeds and budgets for all.
        first: budgets left out at the start, as those at which all share one model.

    Returns:
        (k, k), in the order of `curves`; NaN on the diagonal.

    Raises:
        DataError: fewer than two strategies, shapes that differ, or nothing left to compare.
    """
    first = as_count(first, "first", 0)
    arrays = [as_floats(values, f"curves[{name!r}]") for name, values in curves.items()]
    shapes = {array.shape for array in arrays}
    if len(arrays) < 2 or len(shapes) > 1 or arrays[0].ndim != 2:
        raise DataError(
            "Expected two strategies or more with curves of one shape, (seeds, budgets), but got "
            f"{ {name: np.shape(values) for name, values in curves.items()} }. Compare over the "
            "seeds that all have."
        )
    values = np.stack(arrays)[:, :, first:]
    if not values.size or not bool(np.isfinite(values).all()):
        raise DataError(
            f"Expected finite figures after the first {first} of {arrays[0].shape[1]} budgets but "
            "got none, or some that are NaN or infinite."
        )
    difference = difference_of(*np.broadcast_arrays(values[:, None], values[None]))
    shares = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(2, 3))
    np.fill_diagonal(shares, np.nan)
    return np.asarray(shares, dtype=np.float64)


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over cells, 1 for the best, and the difference from which they count.

    ranks: (k,). critical_difference: between two mean ranks. p: of the Friedman test.
    """

    ranks: Array
    critical_difference: float
    p: float


def rank(values: ArrayLike, level: float = 0.05) -> Ranking:
    """Return the ranks of strategies over cells.

    Args:
        values: (n_cells, k), one figure per strategy in each cell, higher is better.
        level: of the critical difference.

    Raises:
        DataError: fewer than two cells or three strategies, a figure that is not finite, or a level
            outside (0, 1).
    """
    array, level = as_floats(values, "values"), as_share(level, "level")
    enough = array.ndim == 2 and array.shape[0] >= 2 and array.shape[1] >= 3
    if not enough or not bool(np.isfinite(array).all()):
        raise DataError(
            "Expected finite figures of three strategies or more in two cells or more, "
            f"(cells, strategies), but got shape {array.shape}."
        )
    n, k = array.shape
    # Figures that differ by rounding alone are ties, each by its own size: one that is far off, as
    # R² of a network that diverged, must not make ties of the others.
    by_row, by_column = np.broadcast_arrays(array[:, :, None], array[:, None, :])
    difference = difference_of(by_row, by_column)  # (n, k, k)
    ranks = 0.5 + (difference < 0).sum(axis=2) + 0.5 * (difference == 0).sum(axis=2)
    quantile = float(stats.studentized_range.ppf(1 - level, k, np.inf)) / np.sqrt(2)
    # Where all cells tie, the statistic is 0 / 0: nothing differs.
    all_tie = bool((difference == 0).all())
    p = 1.0 if all_tie else float(stats.friedmanchisquare(*ranks.T).pvalue)
    return Ranking(ranks.mean(axis=0), float(quantile * np.sqrt(k * (k + 1) / (6 * n))), p)
