"""K-means, and the samples nearest to its centroids."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.strategies.mini_batches import mini_batch_clusters

FEW = 50
"""Clusters up to which k-means goes over all rows each time."""
_SUM = 1e-5  # by how much, relative to it, a sum of distances in single precision may be wrong


def clusters(x: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """A cluster for every row, by k-means; mini-batches beyond 50 clusters. Returns (n,)."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    seed = int(torch.randint(2**31 - 1, (), generator=rng))
    # One thread, because sums in the order in which threads finish differ from run to run.
    with threadpool_limits(limits=1):
        if k > FEW:
            return torch.from_numpy(mini_batch_clusters(x.numpy(), k, seeds, seed)).long()
        # Importing scikit-learn takes seconds that others need not wait for.
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            # Where there are fewer distinct samples than clusters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            means = KMeans(k, n_init=10, random_state=seed)
            return torch.from_numpy(means.fit_predict(x.numpy())).long()


def seeds(x: np.ndarray, n_clusters: int, random_state: Any) -> np.ndarray:
    """Return the centres of scikit-learn's greedy k-means++, in a fifth of its time.

    x: (n, d) in single precision. random_state: a `numpy.random.RandomState`. Returns
    (n_clusters, d). As there, the draw of least potential is taken of 2 + log(k) each time, and
    its distances are computed in double precision, then rounded. Here single precision tells which
    draws may be the one, and of these which rows may come nearer.
    """
    trials = 2 + int(np.log(n_clusters))
    ones = np.ones(len(x), dtype=x.dtype)
    wide = x.astype(np.float64)
    norms = np.einsum("ij,ij->i", wide, wide)
    narrow = norms.astype(x.dtype)
    # More than single precision can miss in d products, none of which exceeds the largest norm.
    margin = 4 * (x.shape[1] + 4) * np.finfo(x.dtype).eps * narrow.max()
    rows_of_x = torch.from_numpy(x)  # few columns at a time take torch half as long as NumPy

    def distances(to: int, rows: np.ndarray | slice) -> np.ndarray:
        exact = -2 * (wide[rows] @ wide[to]) + norms[to] + norms[rows]
        result: np.ndarray = exact.astype(x.dtype)
        return result.clip(min=0)

    centres = [int(random_state.choice(len(x), p=ones / ones.sum()))]
    nearest = distances(centres[0], slice(None))
    potential = nearest @ ones
    for _ in range(1, n_clusters):
        points = random_state.uniform(size=trials) * potential
        draws = np.searchsorted(np.cumsum(nearest), points)
        np.clip(draws, None, len(x) - 1, out=draws)
        products = (rows_of_x @ rows_of_x[torch.from_numpy(draws)].T).T.contiguous().numpy()
        rough = narrow + narrow[draws, None] - 2 * products
        closer = rough < nearest + margin
        squares = np.minimum(nearest, rough.clip(min=0))
        potentials = (squares @ ones[:, None])[:, 0]
        doubt = margin * closer.sum(axis=1) + _SUM * potentials
        contenders = np.flatnonzero(potentials - doubt <= (potentials + doubt).min())
        for i in contenders:
            squares[i] = nearest
            rows = np.flatnonzero(closer[i])
            squares[i, rows] = np.minimum(nearest[rows], distances(draws[i], rows))
        potentials = (squares @ ones[:, None])[contenders, 0]
        first = int(np.argmin(potentials))
        potential, nearest = potentials[first], squares[contenders[first]]
        centres.append(int(draws[contenders[first]]))
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
            distances = (x[members] - centroid).square().sum(dim=1)
            # Both rows of a cluster of two are as near: the first, and not what rounding says.
            nearest = distances <= distances.min() * (1 + _SUM)
            rows.append(int(members[nearest.nonzero()[0, 0]]))
    rows_taken = set(rows)
    others = [i for i in torch.randperm(len(x), generator=rng).tolist() if i not in rows_taken]
    return rows + others[: k - len(rows)]
