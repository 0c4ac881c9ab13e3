"""Gradient norm with diversity, against vectors written out and determinants computed outright."""

from __future__ import annotations

import pytest
import torch
from pools import generator, make_pool

from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.diverse import determinantal, power_draw
from upslope.strategies.seeding import Rows, draw


def test_k_means_is_that_of_the_vectors() -> None:
    strategy = build("gradnorm-diverse")
    pool = make_pool(strategy.needs, 30, 0)
    g, rng = pool.signal(strategy.needs[0]).double(), generator(4)
    seeds = [int(g.norm(dim=1).argmax())]
    while len(seeds) < 8:
        nearest = torch.cdist(g, g[seeds]).amin(dim=1).square()
        nearest[seeds] = 0
        seeds.append(draw(nearest, rng))
    selection = strategy.select(pool, 8, generator(4))
    assert list(selection.ids) == [pool.candidates[i] for i in seeds]
    assert selection.scores is not None
    assert torch.allclose(selection.scores, g.norm(dim=1))


def test_dpp_takes_the_largest_determinant_each_time() -> None:
    strategy = build("gradnorm-diverse", spread="dpp")
    pool = make_pool(strategy.needs, 20, 0)
    g = pool.signal(strategy.needs[0]).double()
    chosen: list[int] = []
    for pick in strategy.select(pool, 6, generator()).ids:
        volumes = []
        for i in range(20):
            sub = g[[*chosen, i]]
            volumes.append(float((sub @ sub.T).det()) if i not in chosen else -1.0)
        position = pool.candidates.index(pick)
        assert volumes[position] == pytest.approx(max(volumes), rel=1e-6)
        chosen.append(position)


def test_dpp_beyond_the_rank_goes_on_with_the_longest() -> None:
    line = Rows(torch.tensor([[1.0], [3.0], [2.0], [5.0]], dtype=torch.float64))
    assert determinantal(line, 4, generator()) == [3, 1, 2, 0]


def test_near_copies_are_not_taken_together() -> None:
    strategy = build("gradnorm-diverse", spread="dpp")
    (need,) = strategy.needs
    pool = make_pool(strategy.needs, 12, 0)
    g = pool.signal(need).clone()
    g[:2] = 10 * g[0]  # the two steepest of all are the same sample
    twins = PoolView(pool.candidates, {need: g})
    assert len({"u000", "u001"} & set(strategy.select(twins, 5, generator()).ids)) == 1
    steepest = g.norm(dim=1).topk(2).indices.tolist()
    assert sorted(steepest) == [0, 1]


def test_power_draws_in_proportion() -> None:
    s, rng, counts = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), generator(), [0, 0, 0]
    for _ in range(3000):
        counts[power_draw(s, 2.0, 1, rng)[0]] += 1
    for count, weight in zip(counts, (1, 4, 9), strict=True):
        share = weight / 14
        assert abs(count / 3000 - share) < 4.5 * (share * (1 - share) / 3000) ** 0.5


def test_power_of_zero_gradients_comes_last() -> None:
    s = torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    for seed in range(20):
        assert set(power_draw(s, 1.0, 2, generator(seed))) == {1, 3}
