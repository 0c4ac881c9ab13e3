"""A proportion, such as an accuracy on a random sample, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.floats import as_count, as_share


@dataclass(frozen=True)
class Proportion:
    """value: share of the trials that succeeded. low, high: its interval. method: its name.

    successes: how many trials succeeded. confidence: of the interval, between 0 and 1.
    """

    value: float
    low: float
    high: float
    successes: int
    trials: int
    confidence: float
    method: str = "Wilson"


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Proportion:
    """Return a proportion with Wilson's score interval (JASA 22, 1927).

    Unlike the interval of the normal approximation it holds its confidence at few trials and near
    0 and 1, on average over proportions (Brown, Cai and DasGupta, Statistical Science 16, 2001).

    Raises:
        DataError: no trial, more successes than trials, numbers that are not whole, or a
            confidence outside (0, 1).
    """
    successes, trials = as_count(successes, "successes", 0), as_count(trials, "trials", 1)
    confidence = as_share(confidence, "confidence")
    if successes > trials:
        raise DataError(
            f"Expected as many successes as trials at most but got {successes} successes in "
            f"{trials} trials."
        )
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Proportion(
        successes / trials,
        float(interval.low),
        float(interval.high),
        successes,
        trials,
        confidence,
    )
