"""Arguments that are no numbers, or that a statistic is not defined for: one error names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from upslope import evaluation
from upslope.errors import DataError

NAN = math.nan
SPLITS = [[1.0, NAN], [NAN, 1.0]]
RIGHT = np.ones((3, 5))
CURVES = [[0.1, 0.2], [0.1, 0.3]]

WITH_CONFIDENCE: dict[str, Callable[[Any], object]] = {
    "mean_interval": lambda c: evaluation.mean_interval([1.0, 2.0], c),
    "wilson_interval": lambda c: evaluation.wilson_interval(1, 5, c),
    "paired_comparison": lambda c: evaluation.paired_comparison([1, 2], [1, 3], c),
    "labels_needed": lambda c: evaluation.labels_needed([1, 2], CURVES, CURVES, 1.0, c),
    "predict_gain": lambda c: evaluation.predict_gain([10, 20, 30], RIGHT, 50, c),
    "measure_saving": lambda c: evaluation.measure_saving([1, 2], np.zeros((2, 2)), 1, SPLITS, c),
    "rank": lambda c: evaluation.rank([[0.1, 0.2, 0.3], [0.1, 0.3, 0.2]], c),
}


@pytest.mark.parametrize("name", WITH_CONFIDENCE)
@pytest.mark.parametrize("confidence", [95, 0, 1, NAN, "95%", None, [0.95]])
def test_a_confidence_lies_between_0_and_1(name: str, confidence: Any) -> None:
    """Some gave intervals of NaN or without a width, and others errors of SciPy and Python."""
    with pytest.raises(DataError, match=r"`(confidence|level)` to be"):
        WITH_CONFIDENCE[name](confidence)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation.labels_to_reach([10, 20], CURVES, 0.2), "one curve"),
        (lambda: evaluation.labels_to_reach([10, 20], CURVES[:1], 0.2), "one curve"),
        (lambda: evaluation.labels_to_reach([10, 20], CURVES[0], NAN), "`target` to be one finite"),
        (lambda: evaluation.labels_to_reach([10, 20], CURVES[0], "90"), "`target` to be one fin"),
        (lambda: evaluation.wilson_interval(2.5, 5), "`successes` to be a whole number of at"),
        (lambda: evaluation.wilson_interval("a", 5), "`successes` to be one finite number"),
        (
            lambda: evaluation.wilson_interval(-1, 5),
            "`successes` to be a whole number of at least 0",
        ),
        (lambda: evaluation.wilson_interval(1, 0), "`trials` to be a whole number of at least 1"),
        (lambda: evaluation.wilson_interval(1, None), "`trials` to be one finite number"),
        (lambda: evaluation.wilson_interval(6, 5), "6 successes in 5 trials"),
        (lambda: evaluation.equivalence([0.1, 0.2], "a"), "`margin` to be one finite number"),
        (lambda: evaluation.equivalence([0.1, 0.2], [0.1]), "`margin` to be one finite number"),
        (lambda: evaluation.equivalence([0.1, 0.2], math.inf), "`margin` to be one finite number"),
        (lambda: evaluation.labels_needed([1, 2], CURVES, CURVES, "a"), "`share` to be one finite"),
        (lambda: evaluation.predict_gain([10, 20, 30], RIGHT, 0), "`more` to be a whole number"),
        (lambda: evaluation.predict_gain([10, 20, 30], RIGHT, -40), "`more` to be a whole number"),
        (lambda: evaluation.predict_gain([10, 20, 30], NAN * RIGHT), "`correct` to hold true and"),
        (lambda: evaluation.predict_gain([10, 20, 30], 7 * RIGHT), "`correct` to hold true and"),
        (lambda: evaluation.measure_saving(3, RIGHT[:2, :2], 1, SPLITS), "increasing labels"),
        (lambda: evaluation.measure_saving([1, 2], RIGHT[:2, :2], 0, SPLITS), "`random_labels` to"),
        (
            lambda: evaluation.measure_saving([1, 2], RIGHT[:2, :2], 2, SPLITS),
            "fewer random labels",
        ),
        (
            lambda: evaluation.measure_saving([1, 2], RIGHT[:2, :2], 1, [[NAN, NAN], [1, NAN]]),
            "measure on 0 samples",
        ),
        (lambda: evaluation.measure_saving([], np.zeros((0, 2)), 1, SPLITS), "increasing labels"),
        (
            lambda: evaluation.measure_saving([NAN, 2], RIGHT[:2, :2], 1, SPLITS),
            "increasing labels",
        ),
        (
            lambda: evaluation.measure_saving([1, 2], 7 * RIGHT[:2, :2], 1, SPLITS),
            "`correct` to ho",
        ),
        (lambda: evaluation.measure_saving([1], [[1, NAN]], 1, SPLITS), "`correct` to hold true"),
        (
            lambda: evaluation.measure_saving([1], RIGHT[:1, :2], 1, [[7.0, NAN], [NAN, 1.0]]),
            "`random_correct` to hold true and",
        ),
        (
            lambda: evaluation.measure_saving([1], RIGHT[:1, :2], 1, [[math.inf, 1], [NAN, 1.0]]),
            "`random_correct` to hold true and",
        ),
        (lambda: evaluation.predict_gain([1, 2, math.inf], RIGHT), "three increasing numbers"),
        (lambda: evaluation.win_matrix({"a": CURVES, "b": CURVES}, -1), "`first` to be a whole"),
        (lambda: evaluation.win_matrix({"a": CURVES, "b": CURVES}, 0.5), "`first` to be a whole"),
        (
            lambda: evaluation.smallest_sign_flip_p(0),
            "`n_seeds` to be a whole number of at least 1",
        ),
        (lambda: evaluation.holm([0.5, 1.5]), "between 0 and 1 but got 1.5"),
        (lambda: evaluation.holm([-0.1, NAN]), "between 0 and 1 but got -0.1"),
        (lambda: evaluation.fleiss_kappa([[3, -1], [1, 1]]), "in whole numbers"),
        (lambda: evaluation.fleiss_kappa([[1.5, 0.5], [1, 1]]), "in whole numbers"),
        (lambda: evaluation.have_spread([]), "at least one seed"),
        (lambda: evaluation.have_spread(["a"]), "`values` to be numbers"),
    ],
)
def test_what_a_statistic_is_not_defined_for_is_named(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_whole_numbers_may_be_floats_and_those_of_numpy() -> None:
    for successes, trials in ((2.0, 5.0), (np.int64(2), np.float32(5)), (np.array(2), 5)):
        assert evaluation.wilson_interval(successes, trials) == evaluation.wilson_interval(2, 5)
