"""Equality and non-inferiority: against SciPy's one-sided tests, and by their error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation import equivalence, holm, paired_comparison


def test_is_two_one_sided_t_tests() -> None:
    d = np.random.default_rng(1).normal(0.2, 0.5, size=12)
    found = equivalence(d, 0.6)
    low = stats.ttest_1samp(d, -0.6, alternative="greater").pvalue
    high = stats.ttest_1samp(d, 0.6, alternative="less").pvalue
    assert found.p_equal == pytest.approx(max(low, high))
    assert found.p_not_worse == pytest.approx(low)
    assert found.below + found.within + found.above == pytest.approx(1)
    draws = stats.t(11, d.mean(), d.std(ddof=1) / 12**0.5).rvs(200_000, random_state=0)
    assert found.within == pytest.approx((np.abs(draws) < 0.6).mean(), abs=5e-3)


def test_the_same_difference_in_every_seed_is_not_certain() -> None:
    """It was, with p = 0 from two seeds on, as the report has not said for long."""
    assert equivalence([0.0] * 5, 1.0).p_equal == 0.5**5
    assert equivalence([2.0] * 5, 1.0).p_equal == 1.0
    assert equivalence([2.0] * 5, 1.0).p_not_worse == 0.5**5
    assert equivalence([0.91 - 0.9, 0.92 - 0.91, 0.93 - 0.92], 0.05).p_equal == 0.5**3
    assert math.isnan(equivalence([0.0, 0.0], 1.0).within)
    assert math.isnan(equivalence([0.0], 1.0).p_equal)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="above 0"):
        equivalence([0.1, 0.2], 0.0)
    with pytest.raises(DataError, match="finite"):
        equivalence([0.1, math.nan], 1.0)


# Simulated studies. Each rate is of STUDIES of them: three standard errors above 0.05 are 0.0646.
STUDIES, SEEDS, STRATEGIES = 2000, 10, 9
MOST = 0.05 + 3 * (0.05 * 0.95 / STUDIES) ** 0.5


def areas(rng: np.random.Generator, shape: str) -> np.ndarray:
    """(strategies and reference, seeds) of no difference: a level per seed, and noise of a run."""
    level = rng.normal(0, 2, SEEDS)
    noise = (
        rng.normal if shape == "normal" else lambda low, high, size: rng.laplace(low, high, size)
    )
    return np.asarray(level + noise(0, 1, (STRATEGIES + 1, SEEDS)))


@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_without_a_difference_no_more_than_one_study_in_twenty_shows_one(shape: str) -> None:
    """Family-wise: one wrong word on any of nine strategies counts as a false positive."""
    rng, studies, wrong = np.random.default_rng(7), 300, np.zeros(2)
    for _ in range(studies):
        values = areas(rng, shape)
        found = [paired_comparison(v, values[0]) for v in values[1:]]
        wrong += [
            (holm([f.p_t for f in found]) < 0.05).any(),
            (holm([f.p_sign_flip for f in found]) < 0.05).any(),
        ]
    assert (wrong / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5).all()


@pytest.mark.parametrize(("field", "mean"), [("p_equal", 1.0), ("p_not_worse", -1.0)])
def test_at_the_margin_equality_and_non_inferiority_are_said_in_one_study_of_twenty(
    field: str, mean: float
) -> None:
    rng = np.random.default_rng(3)
    said = [
        getattr(equivalence(rng.normal(mean, 0.5, SEEDS), 1.0), field) < 0.05
        for _ in range(STUDIES)
    ]
    assert 0.03 < np.mean(said) <= MOST
