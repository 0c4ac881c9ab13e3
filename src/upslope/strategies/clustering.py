"""K-means, and the samples nearest to its centroids."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


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
        means = MiniBatchKMeans(k, batch_size=5000, n_init=3, random_state=seed)
    # One thread, because sums in the order in which threads finish differ from run to run.
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than clusters
        return torch.from_numpy(means.fit_predict(x.numpy())).long()


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
    taken = set(rows)
    others = [i for i in torch.randperm(len(x), generator=rng).tolist() if i not in taken]
    return rows + others[: k - len(rows)]
