"""The predicted gain of more labels: on exact power laws, and the coverage of its interval."""

from __future__ import annotations

import numpy as np
import pytest

from short_forms import mark_rest_long
from upslope.errors import DataError
from upslope.evaluation import predict_gain

LABELS = [50, 70, 100, 140, 200]


def error(n: float, scale: float = 3.0, power: float = 0.6) -> float:
    return float(scale * n**-power)


def test_an_exact_power_law_is_continued() -> None:
    m = 20_000
    correct = [np.arange(m) >= round(m * error(n)) for n in LABELS]
    gain = predict_gain(LABELS, correct, 50)
    true = error(200) - error(250)
    assert gain.value == pytest.approx(true, abs=2e-4)
    assert gain.low < true < gain.high
    assert gain.high - gain.low < 0.01
    assert (gain.labels, gain.more, gain.of) == (200, 50, m)


def test_a_level_curve_brings_nothing_and_what_can_be_shown_is_that_of_mcnemar() -> None:
    correct = np.tile(np.arange(100) >= 20, (5, 1))
    correct[-2, :9] ^= True  # the model with 50 or so fewer labels differs in 9 of 100
    gain = predict_gain(LABELS, correct, 50)
    assert gain.low == 0
    assert gain.detectable == pytest.approx(1.96 * np.sqrt(0.09 / 100), rel=1e-3)


@pytest.mark.parametrize("m", mark_rest_long([40, 200], 2))
def test_intervals_hold_the_true_gain_as_often_as_they_say(m: int) -> None:
    true = error(200) - error(250)
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(200):
        hard = rng.random(m)  # samples are as hard for every model, so that errors are shared
        slips = rng.random((5, m))
        chance = 0.7 * (hard < np.array([[error(n)] for n in LABELS]))
        chance = chance + 0.3 * np.array([[error(n)] for n in LABELS])
        gain = predict_gain(LABELS, slips >= chance, 50, seed=seed)
        held += gain.low <= true <= gain.high
    assert held >= 0.92 * 200


@pytest.mark.parametrize(("last", "power", "m"), [(0.05, 0.5, 15), (0.03, 0.8, 20)])
def test_intervals_hold_also_where_few_samples_show_hardly_an_error(
    last: float, power: float, m: int
) -> None:
    """They were of 0 to 0 where no model erred: with 15 samples a third said "hardly pays"."""
    labels = np.array([10, 14, 20, 28, 40])
    errors = last * (labels / 40) ** -power
    true = last * (1 - (90 / 40) ** -power)
    assert true > 0.01
    rng = np.random.default_rng(5)
    held, hardly = 0, 0
    for seed in range(200):
        is_right = rng.random(m) >= errors[:, None]  # what one model errs on, worse ones do too
        gain = predict_gain(labels, is_right, 50, seed=seed)
        held += gain.low <= true <= gain.high
        hardly += gain.high < 0.01
    assert held >= 0.92 * 200
    assert hardly <= 0.025 * 200
    assert predict_gain(labels, np.ones((5, 400)), 50).high < 0.01  # many show it


def test_refusals() -> None:
    with pytest.raises(DataError, match="three increasing"):
        predict_gain([10, 20], np.ones((2, 5)))
    with pytest.raises(DataError, match="three increasing"):
        predict_gain([10, 30, 20], np.ones((3, 5)))
    with pytest.raises(DataError, match="shape"):
        predict_gain([10, 20, 30], np.ones((2, 5)))
