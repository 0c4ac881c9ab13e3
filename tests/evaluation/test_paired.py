from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation import holm, paired_comparison, sign_flip_test, smallest_sign_flip_p


def test_sign_flip_by_hand() -> None:
    # sums of +-1 +-2 +-3: |6| twice of 8
    assert sign_flip_test([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    # observed |sum| 4: the patterns of |6| and |4|
    assert sign_flip_test([-1.0, 2.0, 3.0]) == pytest.approx(4 / 8)


def test_sign_flip_agrees_with_scipy_permutations() -> None:
    differences = np.random.default_rng(3).normal(0.5, 1.0, size=8)
    oracle = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(differences) == pytest.approx(oracle.pvalue)


def test_sign_flip_at_ties_counts_every_tie() -> None:
    assert sign_flip_test([0.1, 0.1, 0.1, 0.1]) == pytest.approx(2 / 16)
    assert sign_flip_test([0.0, 0.0]) == 1.0


def test_sign_flip_with_many_seeds_is_sampled_repeatably_and_close_to_t() -> None:
    differences = np.random.default_rng(4).normal(0.4, 1.0, size=30)
    p = sign_flip_test(differences)
    assert p == sign_flip_test(differences)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.02)


def test_sign_flip_takes_the_two_signs_of_a_difference_alike() -> None:
    differences = np.random.default_rng(3).normal(0.5, 1.0, size=8)
    assert sign_flip_test(-differences) == sign_flip_test(differences)
    assert paired_comparison(-differences, 0 * differences).p_t == pytest.approx(
        stats.ttest_1samp(differences, 0.0).pvalue
    )
    assert paired_comparison([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).p_t == 0.0


@pytest.mark.parametrize("n", [16, 17, 18])
def test_sign_flip_agrees_with_all_patterns_beyond_those_that_it_visits(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1.0, size=n)
    sums = np.zeros(1)
    for d in differences:
        sums = np.concatenate([sums - d, sums + d])
    exact = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
    error = 0 if n == 16 else 4 * math.sqrt(exact * (1 - exact) / 100_000)
    assert sign_flip_test(differences) == pytest.approx(exact, abs=error + 1e-12)


def test_the_smallest_p_by_hand() -> None:
    assert smallest_sign_flip_p(16) == 2 / 2**16
    assert smallest_sign_flip_p(17) == 1 / 100_001


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_the_chance_of_one_difference_is_the_largest_of_skellam(n: int) -> None:
    """Over all means, of the difference of two Poisson counts."""
    counts = np.arange(1, 60)
    chances = [2 * (stats.skellam.pmf(counts, m, m) ** n).sum() for m in np.arange(0.01, 8, 0.01)]
    p = paired_comparison(np.full(n, 0.51), np.full(n, 0.5)).p
    assert p == pytest.approx(max(chances), rel=1e-4)


def test_the_smallest_p_is_reached() -> None:
    for n in (1, 2, 5, 10):
        assert sign_flip_test(np.arange(1.0, n + 1)) == pytest.approx(smallest_sign_flip_p(n))


@pytest.mark.parametrize("n", [17, 20, 60])
def test_the_smallest_p_of_drawn_patterns_is_reached(n: int) -> None:
    """It was told as 2 / 2^n, which no such test can give."""
    p = smallest_sign_flip_p(n)
    assert p <= sign_flip_test(np.arange(1.0, n + 1)) <= 5 * p


def test_paired_t_agrees_with_scipy() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=7), rng.normal(size=7)
    result = paired_comparison(a, b)
    oracle = stats.ttest_rel(a, b)
    assert result.p_t == pytest.approx(oracle.pvalue)
    assert result.difference.low == pytest.approx(oracle.confidence_interval().low)
    assert result.wins == int((a > b).sum())


def test_differences_without_spread() -> None:
    assert paired_comparison([1.0, 2.0], [1.0, 2.0]).p_t == 1.0
    assert paired_comparison([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).p_t == 0.0


def test_one_seed_is_not_tested() -> None:
    result = paired_comparison([0.9], [0.8])
    assert math.isnan(result.p_t)
    assert math.isnan(result.p_sign_flip)
    assert result.difference.mean == pytest.approx(0.1)


def test_holm_by_hand() -> None:
    # sorted .01 .03 .04 -> x3, x2, x1 = .03 .06 .04 -> running maximum .03 .06 .06
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = holm([0.02, math.nan, 0.03])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04])
    assert math.isnan(adjusted[1])


def test_unpaired_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"shapes \(2,\) and \(3,\)"):
        paired_comparison([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="finite differences"):
        sign_flip_test([])


def test_the_same_difference_in_both_seeds_is_not_certain() -> None:
    """Accuracies of 100 samples are often alike in two seeds: the t test then said p < 0.001."""
    result = paired_comparison([0.90, 0.91], [0.895, 0.905])
    assert not result.has_spread
    assert result.p == result.p_sign_flip == 0.5
    result = paired_comparison([0.90, 0.92], [0.895, 0.905])
    assert result.has_spread
    assert result.p == result.p_t


def test_three_seeds_of_one_difference_are_not_certain() -> None:
    """The t test said p = 0, for what happens by chance on a test set of so few samples."""
    result = paired_comparison([0.90, 0.91, 0.95], [0.88, 0.89, 0.93])
    assert not result.has_spread
    assert 0.02 < result.p < 0.025
    assert paired_comparison([0.5] * 3, [0.5] * 3).p == 1.0


@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_one_difference_by_chance_is_no_more_frequent_than_its_p(seeds: int) -> None:
    rng, studies = np.random.default_rng(5), 100_000
    for mean in (0.3, 0.8, 2.0):
        d = rng.poisson(mean, (studies, seeds)) - rng.poisson(mean, (studies, seeds))
        rate = ((np.ptp(d, axis=1) == 0) & (d[:, 0] != 0)).mean()
        p = paired_comparison(np.full(seeds, 0.51), np.full(seeds, 0.5)).p
        assert rate <= p + 3 * (p / studies) ** 0.5
        assert mean != 0.8 or rate > p - 3 * (p / studies) ** 0.5
