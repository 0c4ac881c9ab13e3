"""Mini-batch k-means: the draws, steps and end of scikit-learn's, whose import takes seconds.

Of `SEEDINGS` sets of seeds, the one of the least sum of squared distances on a sample is taken.
Then, batch by batch, every row goes to its nearest centre, and each centre becomes the mean of all
rows that ever went to it,

    centre' = (weight centre + sum of its rows) / (weight + number of its rows).

Centres of few rows start again at rows of the batch. The end comes when the moving average of the
squared distances has not fallen for `PATIENCE` batches. Assignments are computed as scikit-learn
does, by the same products of the same blocks, so that clusters are the same too; sums of squared
distances, which decide about seeds and the end, are summed in double precision here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

BATCH = 5000
SEEDINGS = 3
PASSES = 100
"""Passes over the rows after which batches end at the latest."""
PATIENCE = 10
RARE = 0.01
"""Share of the largest weight below which a centre starts again."""
_LEAST_SHARE = 1e-3  # of squared lengths: less is left of them by subtraction than can be trusted
_ROWS = 256  # of a product, as scikit-learn has: other blocks may round in another way

Rows = NDArray[np.float32]
Wide = NDArray[np.float64]
Seeder = Callable[[Rows, int, np.random.RandomState], Rows]


def mini_batch_clusters(x: Rows, k: int, seeder: Seeder, seed: int) -> NDArray[np.intp]:
    """Return the cluster of every row, (n,).

    x: (n, d). k: clusters, at most n. seeder: returns (k, d) seeds from rows. seed: of all draws.
    """
    rng = np.random.RandomState(seed)
    lengths = np.einsum("ij,ij->i", x, x).astype(np.float64)
    centres = _first_centres(x, lengths, k, seeder, rng)
    return _nearest(x, lengths, _fit(x, lengths, centres, rng))[0]


def _first_centres(
    x: Rows, lengths: Wide, k: int, seeder: Seeder, rng: np.random.RandomState
) -> Rows:
    """Return the best of `SEEDINGS` sets of seeds, (k, d). lengths: (n,) squared, of the rows."""
    n = len(x)
    size = 3 * min(BATCH, n)
    size = min(3 * k if size < k else size, n)
    validation = rng.randint(0, n, size)
    rows, lengths_of_rows = x[validation], lengths[validation]
    least, best = np.inf, x[:0]
    for _ in range(SEEDINGS):
        sample = x[rng.randint(0, n, size)] if size < n else x
        seeds = seeder(sample, k, rng)
        spread = _nearest(rows, lengths_of_rows, seeds)[1]
        if spread < least:
            least, best = spread, seeds
    return best


def _fit(x: Rows, lengths: Wide, centres: Rows, rng: np.random.RandomState) -> Rows:
    """Return centres moved batch by batch, (k, d). lengths: (n,) squared, of the rows."""
    n, k = len(x), len(centres)
    size = min(BATCH, n)
    share = min(2 * size / (n + 1), 1)
    uniform = np.full(n, 1, dtype=x.dtype) / np.float32(n)
    weights = np.zeros(k, dtype=x.dtype)
    average = least = np.inf
    without_gain = since_restart = 0
    for step in range(PASSES * n // size):
        since_restart += size
        restart = bool((weights == 0).any()) or since_restart >= 10 * k
        positions = rng.choice(n, size, p=uniform, replace=True)
        batch = x[positions]
        cluster, spread = _nearest(batch, lengths[positions], centres)
        centres = _update(batch, centres, weights, cluster)
        if restart:
            since_restart = 0
            _restart(batch, centres, weights, rng)
        if step == 0:  # it knows of the seeds alone
            continue
        spread /= size
        average = spread if average == np.inf else average * (1 - share) + spread * share
        without_gain = 0 if average < least else without_gain + 1
        least = min(least, average)
        if without_gain >= PATIENCE:
            break
    return centres


def _nearest(x: Rows, lengths: Wide, centres: Rows) -> tuple[NDArray[np.intp], float]:
    """Return the nearest centre of every row, (n,), and the sum of squared distances to them."""
    from scipy.linalg import blas  # takes a while to import, and most commands need it not

    squares = np.einsum("ij,ij->i", centres, centres)
    cluster = np.empty(len(x), dtype=np.intp)
    total = length = float(lengths.sum())
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS]
        distances = np.repeat(squares[None], len(part), axis=0)
        # In place: what is column by column (k, rows) is row by row (rows, k).
        blas.sgemm(-2.0, centres.T, part.T, 1.0, distances.T, trans_a=1, overwrite_c=1)
        of_part = distances.argmin(axis=1)
        cluster[start : start + _ROWS] = of_part
        total += float(distances[np.arange(len(part)), of_part].sum(dtype=np.float64))
    if total < _LEAST_SHARE * length:
        total = sum(
            float(
                np.square(x[s : s + _ROWS] - centres[cluster[s : s + _ROWS]]).sum(dtype=np.float64)
            )
            for s in range(0, len(x), _ROWS)
        )
    return cluster, total


def _update(batch: Rows, centres: Rows, weights: Rows, cluster: NDArray[np.intp]) -> Rows:
    """Return centres that know of a batch too, and count its rows in `weights`."""
    k = len(centres)
    counts = np.bincount(cluster, minlength=k).astype(weights.dtype)
    # Rows in the order of their clusters, each cluster's behind its old centre: sums in this order.
    old = centres * weights[:, None]
    order = np.argsort(np.concatenate([np.arange(k), cluster]), kind="stable")
    starts = np.cumsum(counts + 1) - counts - 1
    sums = torch.nn.functional.embedding_bag(
        torch.from_numpy(order),
        torch.from_numpy(np.concatenate([old, batch])),
        torch.from_numpy(starts.astype(np.int64)),
        mode="sum",
    ).numpy()
    weights += counts
    is_hit = counts > 0
    result = centres.copy()
    result[is_hit] = sums[is_hit] * (1 / weights[is_hit, None])
    return result


def _restart(batch: Rows, centres: Rows, weights: Rows, rng: np.random.RandomState) -> None:
    """Put centres of few rows at rows of the batch, at most half as many as it has."""
    again = weights < RARE * weights.max()
    if again.sum() > 0.5 * len(batch):
        again[np.argsort(weights)[int(0.5 * len(batch)) :]] = False
    if again.any():
        centres[again] = batch[rng.choice(len(batch), replace=False, size=int(again.sum()))]
        weights[again] = weights[~again].min()
