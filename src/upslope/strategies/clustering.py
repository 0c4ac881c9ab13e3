"""K-means, and the samples nearest to its centroids."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW = 0.1
"""Share of the distances up to which only those that may matter are computed exactly."""


def clusters(x: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """A cluster for every row, by k-means; mini-batches beyond 50 clusters. Returns (n,)."""
    # Importing scikit-learn takes a second that most commands need not wait for.
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    seed = int(torch.randint(2**31 - 1, (), generator=rng))
    if k <= 50:
        means = KMeans(k, n_init=10, random_state=seed)
    else:
        means = MiniBatchKMeans(k, init=seeds, batch_size=5000, n_init=3, random_state=seed)
    # One thread, because sums in the order in which threads finish differ from run to run.
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than clusters
        return torch.from_numpy(means.fit_predict(x.numpy())).long()


def seeds(x: np.ndarray, n_clusters: int, random_state: Any) -> np.ndarray:
    """Return the centres of scikit-learn's greedy k-means++, in less than half of its time.

    x: (n, d) in single precision. random_state: a `numpy.random.RandomState`. Returns
    (n_clusters, d). As there, the best of 2 + log(k) draws is taken each time, and distances are
    computed in double precision, then rounded. Here they are computed in single precision first,
    and anew in double precision only where they may be below the distance to the nearest centre.
    """
    trials = 2 + int(np.log(n_clusters))
    ones = np.ones(len(x), dtype=x.dtype)
    wide = x.astype(np.float64)
    norms = np.einsum("ij,ij->i", wide, wide)
    narrow = norms.astype(x.dtype)
    # More than single precision can miss in d products, none of which exceeds the largest norm.
    margin = 4 * (x.shape[1] + 4) * np.finfo(x.dtype).eps * narrow.max()

    def distances(to: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        exact = -2 * (wide[to] @ wide[rows].T) + norms[to, None] + norms[rows]
        result: np.ndarray = exact.astype(x.dtype)
        return result.clip(min=0)

    centres = [random_state.choice(len(x), p=ones / ones.sum())]
    nearest = distances(np.array(centres), slice(None))[0]
    potential = nearest @ ones
    for _ in range(1, n_clusters):
        draws = random_state.uniform(size=trials) * potential
        candidates = np.searchsorted(np.cumsum(nearest), draws)
        np.clip(candidates, None, len(x) - 1, out=candidates)
        rough = narrow + narrow[candidates, None] - 2 * (x[candidates] @ x.T)
        closer = rough < nearest + margin
        if closer.mean() > FEW:
            squares = np.minimum(nearest, distances(candidates, slice(None)))
        else:
            squares = np.repeat(nearest[None], trials, axis=0)
            for i in range(trials):
                rows = np.flatnonzero(closer[i])
                exact = distances(candidates[i : i + 1], rows)[0]
                squares[i, rows] = np.minimum(nearest[rows], exact)
        potentials = squares @ ones[:, None]
        best = int(np.argmin(potentials))
        potential, nearest = potentials[best], squares[best]
        centres.append(candidates[best])
    result: np.ndarray = x[centres]
    return result


def central_rows(x: Tensor, k: int, rng: torch.Generator) -> list[int]:
    """Return k distinct rows: the nearest to the centroid of each of k clusters of the rows.

    x: (n, d), n >= k. Where there are fewer distinct rows than clusters, others at random follow.
    """
    of = clusters(x, k, rng)
    rows = []
    for cluster in range(k):
        members = (of == cluster).nonzero().flatten()
        if len(members):
            centroid = x[members].mean(dim=0)
            rows.append(int(members[(x[members] - centroid).square().sum(dim=1).argmin()]))
    rows_taken = set(rows)
    others = [i for i in torch.randperm(len(x), generator=rng).tolist() if i not in rows_taken]
    return rows + others[: k - len(rows)]
