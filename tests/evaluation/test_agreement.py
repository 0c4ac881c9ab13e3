"""Agreement of people: published examples, and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from upslope.errors import DataError
from upslope.evaluation import cohen_kappa, fleiss_kappa


def test_cohen_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = rng.integers(0, 4, 50)
        other = np.where(rng.random(50) < 0.6, one, rng.integers(0, 4, 50))
        expected = cohen_kappa_score(one, other)
        assert cohen_kappa(one.tolist(), other.tolist()) == pytest.approx(expected)
        assert cohen_kappa(one, other.tolist()) == pytest.approx(expected)  # 1 of NumPy is 1
        assert cohen_kappa(one.tolist(), list(other.astype(float))) == pytest.approx(expected)


def test_cohen_by_hand() -> None:
    # 50 grants: 20 yes by both, 15 no by both, 5 and 10 apart: 0.7 observed, 0.5 by chance.
    one = ["yes"] * 25 + ["no"] * 25
    other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    assert cohen_kappa([[0, 1], [1, 1]], [[0, 1], [1, 1]]) == 1
    assert math.isnan(cohen_kappa(["a", "a"], ["a", "a"]))


def test_fleiss_by_hand() -> None:
    # Fourteen people, ten samples, five classes: the worked example that goes with the formula.
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_refusals() -> None:
    with pytest.raises(DataError):
        cohen_kappa([], [])
    with pytest.raises(DataError):
        cohen_kappa(["a"], ["a", "b"])
    for counts in ([[1, 0], [0, 1]], [[2, 0], [1, 2]], [], [2, 2]):
        with pytest.raises(DataError):
            fleiss_kappa(counts)
