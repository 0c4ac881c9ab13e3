"""TypiClust on blobs whose clusters are known, and typicality by definition."""

from __future__ import annotations

import pytest
import torch
from pools import generator
from torch import Tensor

from upslope.pool import Need, PoolView
from upslope.strategies import build, distances
from upslope.strategies.typiclust import typicality

FEATURES = build("typiclust").needs[0]


def blobs(sizes: list[int], spread: float = 0.05) -> Tensor:
    """Tight bunches of directions, far apart: one axis each."""
    rng = generator()
    axes = torch.eye(len(sizes))
    return torch.cat(
        [axes[i] + spread * torch.randn(n, len(sizes), generator=rng) for i, n in enumerate(sizes)]
    )


def pool_of(sizes: list[int], labelled: list[int]) -> PoolView:
    x, y = blobs(sizes), blobs(labelled) if sum(labelled) else torch.empty(0, len(sizes))
    names = [f"{c}-{i:02d}" for c, n in enumerate(sizes) for i in range(n)]
    marks = [f"L{i}" for i in range(sum(labelled))]
    margin = Need.of("uncertainty", measure="margin")
    return PoolView(
        names, {FEATURES: x, margin: torch.arange(len(x)).float()}, marks, {FEATURES: y}
    )


@pytest.mark.parametrize("n", [2, 5, 60])
def test_typicality_is_one_over_the_mean_distance_to_the_neighbours(n: int) -> None:
    x = torch.randn(n, 3, generator=generator(), dtype=torch.float64)
    k = min(20, n // 2)
    full = torch.cdist(x, x)
    full.fill_diagonal_(torch.inf)
    expected = 1 / (full.sort(dim=1).values[:, :k].mean(dim=1) + 1e-5)
    assert torch.allclose(typicality(x.float()).double(), expected, rtol=1e-3)


def test_typicality_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(30, 3, generator=generator())
    whole = typicality(x)
    monkeypatch.setattr(distances, "BLOCK", 64)
    assert torch.allclose(typicality(x), whole, rtol=1e-4)


def test_one_from_each_cluster_the_most_typical_the_largest_first() -> None:
    pool = pool_of([12, 20, 8, 16], [0, 0, 0, 0])
    ids = build("typiclust").select(pool, 4, generator()).ids
    assert [i[0] for i in ids] == ["1", "3", "0", "2"]
    x = distances.normalise(pool.signal(FEATURES))
    for chosen in ids:
        rows = [i for i, name in enumerate(pool.candidates) if name[0] == chosen[0]]
        best = rows[int(typicality(x[rows]).argmax())]
        assert pool.candidates[best] == chosen


def test_clusters_with_labels_wait() -> None:
    # Six clusters for three labels and three to choose, of which the blobs make up four or more;
    # the two blobs that have labels are visited only after those that have none.
    pool = pool_of([12, 20, 8, 16], [0, 2, 0, 1])
    ids = build("typiclust", max_clusters=4).select(pool, 4, generator()).ids
    assert [i[0] for i in ids] == ["0", "2", "3", "1"]


def test_small_clusters_wait_until_the_others_are_used_up() -> None:
    pool = pool_of([10, 3], [0, 0])
    ids = build("typiclust", max_clusters=2).select(pool, 12, generator()).ids
    assert [i[0] for i in ids] == ["0"] * 10 + ["1"] * 2


@pytest.mark.parametrize(("size", "first"), [(5, "0000000000"), (6, "0101010101")])
def test_a_cluster_of_five_is_small(size: int, first: str) -> None:
    pool = pool_of([10, size], [0, 0])
    ids = build("typiclust", max_clusters=2).select(pool, 10, generator()).ids
    assert "".join(i[0] for i in ids) == first


def test_tcm_is_typiclust_then_margin() -> None:
    pool = pool_of([12, 20], [3, 2])
    early = build("tcm", switch=6).select(pool, 4, generator()).ids
    assert early == build("typiclust").select(pool, 4, generator()).ids
    late = build("tcm", switch=5).select(pool, 4, generator()).ids
    assert late == tuple(reversed(pool.candidates[-4:]))


@pytest.mark.parametrize("n", [2, 3])
def test_two_that_are_each_others_nearest_are_as_typical(n: int) -> None:
    rng = torch.Generator().manual_seed(n)
    for _ in range(50):
        x = distances.normalise(torch.randn(n, 300, generator=rng))
        found = typicality(x).sort(descending=True)
        assert found.values[0] == found.values[1]
        pairs = torch.pdist(x.double())
        assert float(found.values[0]) == pytest.approx(1 / (float(pairs.min()) + 1e-5), rel=1e-6)
