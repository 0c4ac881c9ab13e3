"""K-means: its seeds are those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from upslope.strategies import clustering

pytest.importorskip("sklearn", minversion="1.9", reason="earlier releases sum in another precision")

from sklearn.cluster import kmeans_plusplus


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_seeds_are_those_of_scikit_learn(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(8, 12))
    x = centres[rng.integers(8, size=700)] + rng.normal(size=(700, 12))
    x = (scale * x).astype(np.float32)
    x[50:60] = x[40:50]
    expected, _ = kmeans_plusplus(x, 60, random_state=np.random.RandomState(seed))
    seeds = clustering.seeds(x, 60, np.random.RandomState(seed))
    assert np.array_equal(seeds, expected)
