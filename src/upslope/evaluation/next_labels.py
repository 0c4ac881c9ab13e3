"""The gain that more labels will bring, read off one learning curve measured on few samples.

**The predicted gain.** The error of a model falls with its labels n about as a power law,

    error(n) = exp(a) * n ** -c,    c >= 0,

(Hestness et al., arXiv:1712.00409) over the short stretch that is extrapolated. a and c are fitted
by least squares of log error on log n, weighted by the inverse variance of a measured log error.
The predicted gain is error(n) - error(n + more).

**Its interval** is the percentile interval of a bootstrap (Efron and Tibshirani, 1993): in each
resample the measured samples are drawn anew with replacement, all models together, since they are
measured on the same ones; to every measured error noise is added as large as what is left of the
errors beside the fit, since another order of labels would have given other models; and the curve
begins at a model drawn anew, four models before the last at the latest, since no curve is a power
law from its first label to its last. Beside the measured samples stands a made-up one, on which the
models are wrong up to one drawn anew: there are errors that so few samples do not show, and a curve
without an error would otherwise be sure to stay as it is.

**What the measurement can show.** Two models measured on the same m samples differ in a share d of
them; their difference in accuracy has a standard error of sqrt(d / m) at most (McNemar). A gain
below 1.96 times that cannot be told from none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.floats import (
    as_count,
    as_floats,
    as_share,
    check_answers,
    is_increasing,
)

_RESAMPLES = 1000
_FEWEST = 4  # models that a resampled curve has at least
Array = NDArray[np.float64]


@dataclass(frozen=True)
class PredictedGain:
    """A gain in accuracy, between 0 and 1. value: the prediction. low, high: its interval.

    detectable: the smallest gain that the measurement can tell from none. labels: of the last
    model. more: labels that the gain is predicted for. of: samples measured. confidence: of the
    interval. method: how it was predicted.
    """

    value: float
    low: float
    high: float
    detectable: float
    labels: int
    more: int
    of: int
    confidence: float
    method: str = "power law, bootstrap over the measured samples"


def predict_gain(
    labels: ArrayLike, correct: ArrayLike, more: int = 50, confidence: float = 0.95, seed: int = 0
) -> PredictedGain:
    """Return the gain in accuracy that `more` labels beyond the last model are predicted to bring.

    Args:
        labels: (n_models,), how many labels each model learnt from, strictly increasing.
        correct: (n_models, n_samples), whether a model is right; the same samples for all.
        more: labels to come, at least 1.
        confidence: of the interval.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than three models or two samples, labels that do not increase, `correct`
            outside of 0 to 1, no label to come, or a confidence outside (0, 1).
    """
    n, right = as_floats(labels, "labels"), as_floats(correct, "correct")
    if n.ndim != 1 or len(n) < 3 or n[0] < 1 or not is_increasing(n):
        raise DataError(
            f"Expected three increasing numbers of labels or more but got {n.tolist()}."
        )
    more, confidence = as_count(more, "more", 1), as_share(confidence, "confidence")
    if right.ndim != 2 or len(right) != len(n) or right.shape[1] < 2:
        raise DataError(
            f"Expected `correct` for {len(n)} models and two samples or more but got shape "
            f"{right.shape}."
        )
    check_answers(right, "correct")
    m = right.shape[1]
    x = np.log(n)
    errors = _log_errors(right.mean(axis=1), m)
    weights = _weights(right.mean(axis=1), m)
    a, c = _fit(x, errors[None], weights[None])
    left = errors - (a[0] - c[0] * x)
    spread = math.sqrt(float((weights * left**2).sum() / weights.sum()) * len(n) / (len(n) - 2))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(m + 1, np.full(m + 1, 1 / (m + 1)), _RESAMPLES) / (m + 1)
    wrong_until = rng.integers(0, len(n) + 1, _RESAMPLES)  # by the made-up sample
    is_right = np.arange(len(n)) >= wrong_until[:, None]
    accuracies = draws[:, :m] @ right.T + draws[:, m:] * is_right
    draws_of_errors = _log_errors(accuracies, m) + rng.normal(0, spread, (_RESAMPLES, len(n)))
    starts = rng.integers(0, max(1, len(n) - _FEWEST + 1), _RESAMPLES)
    weights_in_fit = np.where(np.arange(len(n)) >= starts[:, None], weights, 0.0)
    gains = _gain(*_fit(x, draws_of_errors, weights_in_fit), n[-1], more)
    tail = (1 - confidence) / 2
    low, high = np.quantile(gains, [tail, 1 - tail])
    value = float(_gain(a, c, n[-1], more)[0])
    earlier = int(np.abs(n[:-1] - (n[-1] - more)).argmin())
    differ = max(float((right[earlier] != right[-1]).mean()), 1 / m)
    detectable = float(stats.norm.ppf(1 - tail)) * math.sqrt(differ / m)
    return PredictedGain(
        value, float(low), float(high), detectable, int(n[-1]), more, m, confidence
    )


def _log_errors(accuracy: Array, m: int) -> Array:
    """Return the log of the error; half a sample is added on either side, so that none is 0."""
    return np.log((m * (1 - accuracy) + 0.5) / (m + 1))


def _weights(accuracy: Array, m: int) -> Array:
    """Return the inverse variance of a log error that is measured on m samples, but for a
    factor.
    """
    error = (m * (1 - accuracy) + 0.5) / (m + 1)
    return error / (1 - error)


def _fit(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Return (a, c) of y = a - c * x by weighted least squares, per row of y; c is 0 or more."""
    share = weights / weights.sum(axis=1, keepdims=True)
    centre = share @ x
    mean = (share * y).sum(axis=1)
    off = x - centre[:, None]
    slope = (share * off * (y - mean[:, None])).sum(axis=1) / (share * off**2).sum(axis=1)
    c = np.maximum(-slope, 0)
    return mean + c * centre, c


def _gain(a: Array, c: Array, n: float, more: int) -> Array:
    before = np.exp(np.minimum(a - c * math.log(n), 0))
    gain: Array = before * (1 - (1 + more / n) ** -c)
    return gain
