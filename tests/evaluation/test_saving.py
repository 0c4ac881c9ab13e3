"""The saving against random: by hand, and against Nadeau and Bengio's formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation import measure_saving


def test_a_saving_by_hand() -> None:
    # Ten samples; random models of 5 labels are right on 3 of the 5 others. The strategy is right
    # on 2, 3 and 4 of 5 with 2, 3 and 4 labels: as good as random with 3.
    theirs = np.full((2, 10), np.nan)
    theirs[0, :5], theirs[1, 5:] = [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]
    ours = np.array([[1, 1, 0, 0, 0] * 2, [1, 1, 1, 0, 0] * 2, [1, 1, 1, 1, 0] * 2])
    saving = measure_saving([2, 3, 6], ours, 5, theirs)
    assert saving.accuracy == 0.6
    assert saving.needed == 3
    # Both splits have the same: of two, with five samples each, that leaves all open.
    assert (saving.needed_low, saving.needed_high) == (2, math.inf)
    assert saving.share == pytest.approx(0.4)
    assert saving.difference == pytest.approx(0.2 * 2 / 3)


@pytest.mark.parametrize("labels", [[6, 8], [2, 4]])
def test_nothing_is_told_of_numbers_of_labels_that_the_strategy_never_had(labels) -> None:
    """The strategy's accuracy with its first labels, 6, stood for that with 5."""
    theirs = np.full((2, 10), np.nan)
    theirs[0, :5], theirs[1, 5:] = [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]
    saving = measure_saving(labels, np.ones((2, 10)), 5, theirs)
    assert math.isnan(saving.difference)
    assert math.isnan(saving.difference_low)
    assert saving.needed == labels[0]


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    rng = np.random.default_rng(0)
    theirs = np.full((8, 40), np.nan)
    ours = (rng.random((3, 40)) < 0.7).astype(float)
    by_split = []
    for row in theirs:
        rest = rng.permutation(40)[30:]
        row[rest] = rng.random(10) < 0.6
        by_split.append(ours[2][rest].mean() - row[rest].mean())
    saving = measure_saving([10, 20, 30], ours, 30, theirs)
    spread = math.sqrt(np.var(by_split, ddof=1) * (1 / 8 + 10 / 30))
    half = stats.t.ppf(0.975, 7) * spread
    assert saving.difference == pytest.approx(np.mean(by_split))
    assert saving.difference_low == pytest.approx(np.mean(by_split) - half)
    assert saving.difference_high == pytest.approx(np.mean(by_split) + half)


@pytest.mark.parametrize("m", [15, 25, 100])
def test_an_interval_holds_the_truth_also_where_hardly_a_model_errs(m: int) -> None:
    """Where splits did not vary it had no width: of 15 samples it held the truth 4 times in 10."""
    rng = np.random.default_rng(1)
    k = round(0.75 * m)
    grid = sorted({round(n) for n in np.geomspace(5, 2 * k, 8)})

    def is_right(hard: np.ndarray, n: int) -> np.ndarray:
        """A model errs on the hardest samples, and on few others: with n labels on 2% of k / n."""
        share = 0.02 * k / n * math.exp(rng.normal(0, 0.1))
        return np.where(rng.random(m) < 0.9, hard, rng.random(m)) > min(share, 0.9)

    held = 0
    for _ in range(100):
        hard = rng.random(m)
        ours = np.array([is_right(hard, n) for n in grid])
        theirs = np.full((15, m), np.nan)
        for row in theirs:
            rest = rng.permutation(m)[k:]
            row[rest] = is_right(hard, k)[rest]
        saving = measure_saving(grid, ours, k, theirs)  # the strategy is random: it needs k
        held += saving.needed_low <= k <= saving.needed_high
    assert held >= 95


def test_what_is_not_reached_is_infinite() -> None:
    theirs = np.array([[1.0, np.nan], [np.nan, 1.0]])
    saving = measure_saving([1, 2], np.zeros((2, 2)), 1, theirs)
    assert saving.needed == saving.needed_high == math.inf
    assert saving.share == -math.inf
    three_of_four = np.array([[np.nan] * 3 + [1.0], [1.0] + [np.nan] * 3])
    assert math.isnan(measure_saving([1, 2], np.zeros((2, 4)), 3, three_of_four).difference)
    with pytest.raises(DataError, match="shapes"):
        measure_saving([1, 2], np.zeros((2, 3)), 1, theirs)
