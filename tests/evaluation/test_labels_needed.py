"""Labels needed: by hand on straight lines, and the coverage of the interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from upslope.errors import DataError
from upslope.evaluation import labels_needed

BUDGETS = [100, 200, 300]


def test_straight_lines_by_hand() -> None:
    reference = np.array([[0.5, 0.6, 0.7], [0.5, 0.6, 0.7]])
    ours = np.array([[0.5, 0.7, 0.8], [0.5, 0.7, 0.8]])
    whole = labels_needed(BUDGETS, ours, reference)
    assert (whole.labels, whole.low, whole.high, whole.reference) == (200, 200, 200, 300)
    half = labels_needed(BUDGETS, ours, reference, share=0.5)  # 0.55, at 150 labels
    assert (half.labels, half.reference) == (125, 150)


def test_what_is_not_reached_is_infinite() -> None:
    reference = np.array([[0.5, 0.6, 0.7], [0.5, 0.6, 0.72]])
    behind = labels_needed(BUDGETS, reference - 0.2, reference)
    assert behind.labels == behind.low == behind.high == math.inf
    # Level in the mean at the end, and by the spread of two seeds perhaps from the start.
    level = labels_needed(BUDGETS, reference[::-1], reference)
    assert level.labels == 300
    assert level.high == math.inf


def test_one_seed_has_no_interval() -> None:
    found = labels_needed(BUDGETS, [[0.5, 0.7, 0.8]], [[0.5, 0.6, 0.7]])
    assert found.labels == 200
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_interval_holds_the_right_number_of_labels_in_nineteen_studies_of_twenty() -> None:
    rng, budgets = np.random.default_rng(0), np.arange(100, 1001, 100)
    truth = 0.5 + 0.3 * (budgets - 100) / 900
    faster = 0.5 + 0.3 * np.minimum(1, (budgets - 100) / 600)  # there with 700 labels
    held = 0
    for _ in range(400):
        level = rng.normal(0, 0.02, (8, 1))
        ours = faster + level + rng.normal(0, 0.01, (8, len(budgets)))
        theirs = truth + level + rng.normal(0, 0.01, (8, len(budgets)))
        found = labels_needed(budgets, ours, theirs, share=0.8)  # at 800: 0.7333; ours at 566.67
        held += found.low - 1 <= 566.67 <= found.high
    assert held / 400 >= 0.95 - 3 * (0.05 * 0.95 / 400) ** 0.5


def test_a_share_before_the_first_budget_is_refused() -> None:
    with pytest.raises(DataError, match="first budget"):
        labels_needed(BUDGETS, np.ones((2, 3)), np.ones((2, 3)), share=0.1)
    with pytest.raises(DataError, match="same seeds"):
        labels_needed(BUDGETS, np.ones((2, 3)), np.ones((3, 3)))
