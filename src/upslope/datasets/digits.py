"""Handwritten digits: the 1,797 real 8x8 scans that scikit-learn ships. Needs no file.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (the part of it that is its test set).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from upslope.datasets.arrays import build_dataset, number_ids
from upslope.datasets.splits import Splits
from upslope.datasets.subset import Subset, draw
from upslope.progress import Observer, no_progress

TEST = 397
"""Test samples, stratified by class; 1,400 are left for the pool."""

MEAN, STD = (0.3053,), (0.3760,)


def load(root: Path | None = None, *, progress: Observer = no_progress) -> Splits:
    """Handwritten digits of scikit-learn: 1,400 in the pool, 397 to test on, 8x8 grey, built in."""
    del root, progress  # nothing is read from disk
    from sklearn.datasets import load_digits  # import takes a second

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    everything = build_dataset(
        "digits",
        pixels[:, None],  # (n, 1, 8, 8)
        bunch.target,
        tuple("0123456789"),
        source="sklearn.datasets.load_digits()",
        ids=number_ids("digit", len(pixels)),
        mean=MEAN,
        std=STD,
    )
    test, pool = draw(everything.ids, everything.labels, TEST, "test")
    return Splits(pool=Subset(everything, pool.tolist()), test=Subset(everything, test.tolist()))
