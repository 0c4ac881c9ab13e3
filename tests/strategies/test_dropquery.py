"""DropQuery: its signal against masks laid on by hand, its choice against the definition."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pools import generator, make_pool
from torch import nn

from upslope.pool import Need
from upslope.signals import build
from upslope.strategies import build as strategy
from upslope.tasks.classification import Classification


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 4)).eval()


def test_counts_the_masks_that_change_the_prediction() -> None:
    model, x = network(), torch.randn(50, 6, generator=generator(1))
    counts = build(Need.of("feature-dropout", passes=5, rate=0.75)).compute(
        model, Classification(num_classes=4), x
    )
    rng, features, last = generator(0), model[:2](x), model[2]
    expected = torch.zeros(50)
    for _ in range(5):
        dropped = torch.rand(40, generator=rng) < 0.75
        logits = last(torch.where(dropped, 0.0, 4 * features))
        expected += logits.argmax(dim=1) != model(x).argmax(dim=1)
    assert torch.equal(counts, expected)
    assert 0 < float(counts.mean()) < 5


@pytest.mark.parametrize("unsure", [30, 60, 120])
def test_clusters_the_unsure_and_takes_the_nearest_to_each_centroid(unsure: int) -> None:
    """Two budgets of two: 2 x 25 unsure samples are enough, so that 60 are, and 30 are not."""
    dropquery = strategy("dropquery")
    features, changes = dropquery.needs
    pool = make_pool(dropquery.needs, 200, 5)
    count = torch.zeros(200)
    count[:unsure] = 2  # in more than 3 // 2 masks
    count[unsure : unsure + 40] = 1
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(100, 1)
    noise = 0.05 * torch.randn(200, 2, generator=generator(2))
    pool = dataclasses.replace(
        pool,
        signals={features: two + noise, changes: count},
        labelled_signals={},
    )
    chosen = dropquery.select(pool, 2, generator()).ids
    candidates = range(unsure if unsure >= 50 else unsure + 40)
    x = torch.nn.functional.normalize(pool.signals[features], dim=1)
    expected = set()
    for cluster in (0, 1):
        rows = [i for i in candidates if i % 2 == cluster]
        distances = (x[rows] - x[rows].mean(dim=0)).norm(dim=1)
        expected.add(pool.candidates[rows[int(distances.argmin())]])
    assert set(chosen) == expected


def test_too_few_unsure_are_all_taken() -> None:
    dropquery = strategy("dropquery")
    changes = dropquery.needs[1]
    pool = make_pool(dropquery.needs, 20, 5)
    count = torch.zeros(20)
    count[[3, 11]] = 1
    pool = dataclasses.replace(pool, signals={**pool.signals, changes: count})
    chosen = dropquery.select(pool, 6, generator()).ids
    assert {"u003", "u011"} <= set(chosen)
    assert len(set(chosen)) == 6
