"""Strategies against a reference, seed by seed.

Runs of one seed share the initial set, the initial weights and the data order, so the difference
between two strategies is taken within the seed; what the seeds have in common cancels.

Two tests of "the mean difference is zero", both two-sided:

- paired t: assumes that the differences are about normal; has power at five seeds.
- sign flip (Fisher's permutation test for pairs): assumes only that, without an effect, each
  difference is as likely positive as negative. Exact, but n seeds have just 2^n sign patterns,
  so p is never below 2 / 2^n: 0.0625 at five seeds, 0.002 at ten.

Holm's step-down correction controls the chance of any false finding over several strategies
(Holm, Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from upslope.errors import DataError
from upslope.evaluation.curves import (
    INTERVAL_SEEDS,
    Array,
    Interval,
    difference_of,
    have_spread,
    mean_interval,
)
from upslope.evaluation.floats import as_count, as_floats

EXACT_SEEDS = 16
"""Up to here all 2^n sign patterns are visited; beyond, `SAMPLED_PATTERNS` random ones."""
SAMPLED_PATTERNS = 100_000


@dataclass(frozen=True)
class PairedResult:
    """What `paired_comparison` found: the difference (strategy minus reference) and its tests.

    p_t, p_sign_flip: of the paired t test, and of the permutation test over signs.
    has_spread: False for seeds with one difference, from which no t test can be made.
    """

    difference: Interval
    p_t: float
    p_sign_flip: float
    wins: int
    """Seeds in which the strategy was strictly better."""
    has_spread: bool = True

    @property
    def p(self) -> float:
        """Return the p to go by: of the t test; where seeds have no spread, of the sign flips of
        two seeds, and `chance_of_one_difference` of more."""
        if self.has_spread:
            return self.p_t
        if self.difference.n < INTERVAL_SEEDS or float(self.difference.mean) == 0.0:
            return self.p_sign_flip
        return chance_of_one_difference(self.difference.n)


def paired_comparison(
    values: ArrayLike, reference: ArrayLike, confidence: float = 0.95
) -> PairedResult:
    """Compare one strategy with the reference over the seeds that both have.

    Args:
        values, reference: (n_seeds,), one figure per seed (an area, a final accuracy), same order.
        confidence: of the interval of the mean difference.

    Returns:
        The mean difference with its interval and p values; NaN with a single seed.

    Raises:
        DataError: lengths that differ, no seed, or a value that is not finite.
    """
    a, b = as_floats(values, "values"), as_floats(reference, "reference")
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(
            f"Expected one figure per seed on both sides but got shapes {a.shape} and {b.shape}. "
            "Compare over the seeds that both strategies have."
        )
    differences = difference_of(a, b)
    interval = mean_interval(differences, confidence)
    wins = int((differences > 0).sum())
    if len(differences) == 1:
        return PairedResult(interval, float("nan"), float("nan"), wins)
    return PairedResult(
        interval,
        _paired_t(differences),
        sign_flip_test(differences),
        wins,
        bool(have_spread(differences)),
    )


def chance_of_one_difference(n_seeds: int) -> float:
    """Return the largest chance that so many seeds have one difference, not 0, without an effect.

    The difference of two accuracies is (u - v) / m, with u and v the samples of m that one model
    alone is right on: about Poisson, and of one mean where there is no effect. The chance is
    largest at a mean of about 0.8 samples (1 for two seeds): 11% for two seeds, 2.2% for three,
    0.5% for four, 0.1% for five.

    n_seeds: how many, two or more.
    """
    means, counts = np.linspace(0.5, 1.5, 101)[:, None], np.arange(1, 40)
    of_a_count = special.ive(counts, 2 * means)  # Skellam
    return float(2 * (of_a_count**n_seeds).sum(axis=1).max())


def sign_flip_test(differences: ArrayLike) -> float:
    """Return the two-sided p of the permutation test over the signs of paired differences.

    p = share of the 2^n sign patterns whose |sum| is at least the one observed. Exact up to 16
    seeds; beyond, over 100,000 random patterns plus the observed one, from a fixed generator.

    Args:
        differences: (n_seeds,).

    Raises:
        DataError: no difference at all, or one that is not finite.
    """
    d = as_floats(differences, "differences")
    if d.ndim != 1 or len(d) == 0 or not bool(np.isfinite(d).all()):
        raise DataError(f"Expected finite differences, one per seed, but got {d.tolist()}.")
    n = len(d)
    if n <= EXACT_SEEDS:
        patterns = np.arange(2**n)[:, None] >> np.arange(n) & 1  # (2^n, n), every pattern once
        return float(_at_least(patterns, d).mean())
    patterns = np.random.default_rng(0).integers(0, 2, (SAMPLED_PATTERNS, n))
    return float((1 + _at_least(patterns, d).sum()) / (1 + SAMPLED_PATTERNS))


def smallest_sign_flip_p(n_seeds: int) -> float:
    """Return the smallest p that the sign-flip test can give with so many seeds.

    2 / 2^n where all patterns are visited; beyond, that of the observed pattern alone.

    n_seeds: how many pairs.

    Raises:
        DataError: no whole number of at least 1.
    """
    n_seeds = as_count(n_seeds, "n_seeds", 1)
    if n_seeds > EXACT_SEEDS:
        return 1 / (1 + SAMPLED_PATTERNS)
    return 2.0 ** (1 - n_seeds)


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's adjusted p values, in the order given; NaN (not tested) stays NaN, uncounted.

    Sorted p_(1) <= ... <= p_(m): adjusted p_(k) = max over j <= k of min(1, (m - j + 1) p_(j)).

    p_values: of the tests, (m,), NaN where there was none.

    Raises:
        DataError: no list of numbers, or one that is not between 0 and 1.
    """
    p = as_floats(p_values, "p_values")
    if p.ndim != 1:
        raise DataError(f"Expected `p_values` in one dimension but got shape {p.shape}.")
    if outside := p[(p < 0) | (p > 1)].tolist():
        raise DataError(f"Expected `p_values` between 0 and 1 but got {outside[0]}.")
    p_adjusted = np.full_like(p, np.nan)
    positions = np.flatnonzero(~np.isnan(p))
    order = positions[np.argsort(p[positions], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    p_adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[order]))
    return p_adjusted


def _at_least(patterns: NDArray[np.integer], differences: Array) -> NDArray[np.bool_]:
    """Which sign patterns (m, n) give a |sum| of at least the observed one; (m,) of bool."""
    sums = np.abs((2 * patterns - 1) @ differences)
    difference = abs(float(differences.sum()))
    # Patterns that tie with the observed one in exact arithmetic must count as ties.
    slack = 1e-12 * float(np.abs(differences).sum())
    return np.asarray(sums >= difference - slack)


def _paired_t(differences: Array) -> float:
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / np.sqrt(n)
    if error <= 1e-15 * abs(mean):  # the same difference in every seed, up to rounding
        return 1.0 if mean == 0.0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, n - 1))
