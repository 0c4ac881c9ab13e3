"""Gradient norm with diversity, against vectors written out and determinants computed outright."""

from __future__ import annotations

import pytest
import torch
from pools import generator, make_pool
from torch import Tensor

from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.diverse import determinantal, power_draw
from upslope.strategies.seeding import OuterProducts, draw


def vectors_of(pool: PoolView, score: str) -> Tensor:
    """Gradients by the last layer from autograd, rescaled to the pool's gradient norms."""
    strategy = build("gradnorm-diverse", score=score)
    s, p, h = (pool.signal(need).double() for need in strategy.needs)
    rows = []
    for p_i, h_i in zip(p, h, strict=True):
        weight = torch.zeros(len(p_i), len(h_i), dtype=torch.float64, requires_grad=True)
        logits = weight @ h_i + p_i.log()
        log_q = logits.log_softmax(dim=0)
        loss = -(log_q.exp() * log_q).sum() if score != "egl" else -log_q[p_i.argmax()]
        rows.append(torch.autograd.grad(loss, weight)[0].flatten())
    g = torch.stack(rows)
    return s[:, None] * g / g.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("score", ["entropy-gradnorm", "egl"])
def test_k_means_is_that_of_the_vectors(score: str) -> None:
    strategy = build("gradnorm-diverse", score=score)
    pool = make_pool(strategy.needs, 30, 0)
    g, rng = vectors_of(pool, score), generator(4)
    seeds = [int(g.norm(dim=1).argmax())]
    while len(seeds) < 8:
        nearest = torch.cdist(g, g[seeds]).amin(dim=1).square()
        nearest[seeds] = 0
        seeds.append(draw(nearest, rng))
    chosen = strategy.select(pool, 8, generator(4)).ids
    assert list(chosen) == [pool.candidates[i] for i in seeds]


@pytest.mark.parametrize("score", ["entropy-gradnorm", "egl"])
def test_dpp_takes_the_largest_determinant_each_time(score: str) -> None:
    strategy = build("gradnorm-diverse", score=score, spread="dpp")
    pool = make_pool(strategy.needs, 20, 0)
    g = vectors_of(pool, score)
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
    a = torch.tensor([[1.0], [3.0], [2.0], [5.0]], dtype=torch.float64)
    one = OuterProducts(a, torch.ones(4, 1, dtype=torch.float64))
    assert determinantal(one, 4, generator()) == [3, 1, 2, 0]


def test_near_copies_are_not_taken_together() -> None:
    strategy = build("gradnorm-diverse", spread="dpp")
    pool = make_pool(strategy.needs, 12, 0)
    signals = {need: values.clone() for need, values in pool.signals.items()}
    for need, values in signals.items():
        values[1] = values[0]
        if need == strategy.needs[0]:
            values[:2] = 10.0  # the two steepest of all are the same sample
    twins = PoolView(pool.candidates, signals)
    assert len({"u000", "u001"} & set(strategy.select(twins, 5, generator()).ids)) == 1
    steepest = build("entropy-gradnorm").select(twins, 5, generator()).ids
    assert {"u000", "u001"} <= set(steepest)


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
