from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from upslope import evaluation
from upslope.errors import DataError
from upslope.evaluation import area, have_spread, labels_to_reach, mean_interval


def test_interval_of_three_seeds_by_hand() -> None:
    # mean 2, sd 1, se 1/sqrt(3), t(0.975, 2) = 4.302652729911275 (tables)
    interval = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert interval.mean == pytest.approx(2.0)
    assert interval.low == pytest.approx(2.0 - half)
    assert interval.high == pytest.approx(2.0 + half)
    assert interval.n == 3


def test_interval_agrees_with_scipy_at_each_budget() -> None:
    values = np.random.default_rng(1).normal(size=(6, 4))
    interval = mean_interval(values, confidence=0.9)
    for k in range(4):
        expected = stats.ttest_1samp(values[:, k], 0.0).confidence_interval(0.9)
        assert interval.low[k] == pytest.approx(expected.low)
        assert interval.high[k] == pytest.approx(expected.high)


def test_interval_covers_at_its_stated_rate() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(2000):
        interval = mean_interval(rng.normal(size=5))
        hits += int(interval.low <= 0.0 <= interval.high)
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_one_seed_has_no_interval() -> None:
    interval = mean_interval([[0.5, 0.6]])
    assert interval.mean.tolist() == [0.5, 0.6]
    assert np.isnan(interval.low).all()
    assert np.isnan(interval.high).all()


def test_area_by_hand_with_uneven_budgets() -> None:
    # (10 * 0.6 + 30 * 0.75) / 40
    assert area([10, 20, 50], [0.5, 0.7, 0.8]) == pytest.approx((6.0 + 22.5) / 40)


def test_area_of_a_constant_is_the_constant() -> None:
    assert area([3, 5, 11], np.full((2, 3), 0.4)) == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0.5, 10.0), (0.4, 10.0), (0.6, 15.0), (0.75, 25.0), (0.8, 30.0)],
)
def test_labels_to_reach_interpolates(target: float, expected: float) -> None:
    assert labels_to_reach([10, 20, 30], [0.5, 0.7, 0.8], target) == pytest.approx(expected)


def test_labels_to_reach_takes_the_first_crossing_and_nan_when_never() -> None:
    assert labels_to_reach([10, 20, 30, 40], [0.5, 0.7, 0.6, 0.9], 0.6) == pytest.approx(15.0)
    assert math.isnan(labels_to_reach([10, 20], [0.5, 0.7], 0.71))


@pytest.mark.parametrize(
    ("budgets", "curve", "message"),
    [
        ([10, 10], [0.1, 0.2], "increase strictly"),
        ([10], [0.1], "two or more"),
        ([10, 20], [0.1, 0.2, 0.3], "one figure for each of the 2 budgets"),
        ([10, 20], [0.1, float("nan")], "1 of 2 are NaN or infinite"),
    ],
)
def test_bad_curves_are_named(budgets: list[int], curve: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        area(budgets, curve)


def test_bad_seeds_are_named() -> None:
    with pytest.raises(DataError, match="at least one seed"):
        mean_interval([])
    with pytest.raises(DataError, match="between 0 and 1 but got 95"):
        mean_interval([1.0, 2.0], confidence=95)


@pytest.mark.parametrize(
    "call",
    [
        lambda rows: evaluation.area([1, 2], rows),
        lambda rows: evaluation.mean_interval(rows),
        lambda rows: evaluation.labels_needed([1, 2], rows, rows),
        lambda rows: evaluation.paired_comparison(rows, rows),
        lambda rows: evaluation.sign_flip_test(rows),
        lambda rows: evaluation.equivalence(rows, 0.1),
        lambda rows: evaluation.win_matrix({"a": rows, "b": rows}),
        lambda rows: evaluation.rank(rows),
        lambda rows: evaluation.holm(rows),
        lambda rows: evaluation.fleiss_kappa(rows),
    ],
)
@pytest.mark.parametrize("rows", [[[0.5, 0.6], [0.5]], [["0.5", "a"]], {"a": 1}])
def test_rows_of_different_lengths_and_text_are_one_error(
    call: Callable[[Any], Any], rows: Any
) -> None:
    """As of seeds that stopped early; NumPy tells of an "inhomogeneous shape"."""
    with pytest.raises(DataError, match="to be numbers, in rows of one length"):
        call(rows)


def test_no_seed_and_no_list_are_told() -> None:
    none = np.zeros((0, 2))
    with pytest.raises(DataError, match="curves of the same seeds"):
        evaluation.labels_needed([1, 2], none, none)
    with pytest.raises(DataError, match="in one dimension"):
        evaluation.holm([[0.1], [0.2]])


def test_spread_is_told_by_the_size_of_each_figure() -> None:
    """A spread of rounding is none, of figures of the size of 1 and smaller, and of large ones."""
    values = np.array(
        [[0.5, 0.0, 1e6, 0.5, 1e6], [0.5 + 1e-13, 1e-13, 1e6 + 1e-7, 0.5001, 1e6 + 1]]
    )
    assert have_spread(values).tolist() == [False, False, False, True, True]
    assert have_spread(-values).tolist() == [False, False, False, True, True]
