"""Tables that scikit-learn ships: measurements of tumours, and of diabetes patients. Need no file.

W. N. Street, W. H. Wolberg and O. L. Mangasarian, Nuclear feature extraction for breast tumor
diagnosis, 1993; B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, Least Angle Regression, 2004.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from upslope.datasets.arrays import ArrayDataset, number_ids
from upslope.datasets.base import Dataset
from upslope.datasets.splits import Splits
from upslope.datasets.subset import Subset, draw
from upslope.datasets.targets import RowsWithTargets, TargetColumns
from upslope.progress import Observer, no_progress

SHARE = 0.25
"""Of the rows, to test on."""


def breast_cancer(root: Path | None = None, *, progress: Observer = no_progress) -> Splits:
    """Tumours, benign or malignant, by 30 measurements: 427 in the pool, 142 to test; built in."""
    del root, progress  # nothing is read from disk
    from sklearn.datasets import load_breast_cancer  # import takes a second

    bunch = load_breast_cancer()
    labels = bunch.target.astype(np.int64)
    names = tuple(str(name) for name in bunch.target_names)
    ids = number_ids("tumour", len(labels))
    test, pool = draw(ids, labels, round(SHARE * len(ids)), "test")
    inputs = _standardise(bunch.data, pool)
    return _splits(ArrayDataset("breast-cancer", ids, names, inputs, labels), pool, test)


def diabetes(root: Path | None = None, *, progress: Observer = no_progress) -> Splits:
    """Progression of diabetes, a number, by 10 measurements: 332 in the pool, 110 to test."""
    del root, progress
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    target_columns = TargetColumns(
        ("progression",), ("progression",), bunch.target.astype(np.float32)[:, None]
    )
    ids = number_ids("patient", len(bunch.target))
    test, pool = draw(ids, target_columns.strata, round(SHARE * len(ids)), "test")
    inputs = _standardise(bunch.data, pool)
    return _splits(
        RowsWithTargets("diabetes", ids, target_columns.names, inputs, target_columns), pool, test
    )


def _standardise(values: Any, pool: Any) -> Any:
    """Return (n, d) float32, by the mean and the deviation of the pool."""
    pool_values = values[pool]
    return ((values - pool_values.mean(axis=0)) / pool_values.std(axis=0)).astype(np.float32)


def _splits(everything: Dataset, pool: Any, test: Any) -> Splits:
    return Splits(Subset(everything, pool.tolist()), Subset(everything, test.tolist()))
