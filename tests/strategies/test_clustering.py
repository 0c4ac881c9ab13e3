"""K-means: its seeds and its clusters are those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from upslope.strategies import clustering

pytest.importorskip("sklearn", minversion="1.9", reason="earlier releases sum in another precision")

from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus


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


@pytest.mark.parametrize("rows", [60, 700, 6000])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_scikit_learn(seed: int, rows: int) -> None:
    """Batches smaller and larger than the rows, and rows that are alike: centres restart."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(30, 12))
    x = (centres[rng.integers(30, size=rows)] + rng.normal(size=(rows, 12))).astype(np.float32)
    x[10:50] = x[10]
    drawn = torch.Generator().manual_seed(seed)
    clusters = clustering.clusters(torch.from_numpy(x), 55, drawn)
    state = int(torch.randint(2**31 - 1, (), generator=torch.Generator().manual_seed(seed)))
    means = MiniBatchKMeans(
        55, init=clustering.seeds, batch_size=5000, n_init=3, random_state=state
    )
    with threadpool_limits(limits=1):
        assert np.array_equal(clusters.numpy(), means.fit_predict(x))
