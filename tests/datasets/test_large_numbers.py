"""Numbers that single precision, or a column of whole numbers, cannot hold are told."""

from __future__ import annotations

import numpy as np
import pytest

from upslope.datasets import Splits
from upslope.errors import DataError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
COLUMNS = {"a": X[:, 0], "b": X[:, 1]}


@pytest.mark.parametrize("value", [1e39, -1e300, np.inf, 10**400])
def test_targets_that_would_become_infinite_are_refused(value):
    targets = [float(i) for i in range(40)]
    targets[7] = value
    with pytest.raises(DataError, match=r"row 7|too large|one type each"):
        Splits.from_arrays(X, targets, test_share=0.25, kind="numbers")
    with pytest.raises(DataError, match=r"row 7|too large|one type each"):
        Splits.from_table({**COLUMNS, "y": targets}, target="y", kind="numbers")


def test_the_largest_numbers_are_taken():
    largest = float(np.finfo(np.float32).max)
    splits = Splits.from_table({**COLUMNS, "y": [largest] * 40}, target="y", kind="numbers")
    assert splits.pool.targets([0]).item() == largest


def test_whole_numbers_beyond_64_bits_are_no_classes():
    with pytest.raises(DataError, match="of one type but"):
        Splits.from_arrays(X, [10**20, 1] * 20, test_share=0.25)
    with pytest.raises(DataError, match="one type each"):
        Splits.from_table({**COLUMNS, "y": [10**20, 1] * 20}, target="y")
