"""BADGE against k-means++ on the outer products, written out."""

from __future__ import annotations

import pytest
import torch
from pools import generator, make_pool
from torch import Tensor

from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.seeding import OuterProducts, draw, k_means_plus_plus


def gradients(pool: PoolView) -> Tensor:
    """(p - e_y) h^T of every candidate, (n, C d), by autograd on the last layer."""
    p, h = (pool.signal(need).double() for need in build("badge").needs)
    rows = []
    for p_i, h_i in zip(p, h, strict=True):
        weight = torch.zeros(len(p_i), len(h_i), dtype=torch.float64, requires_grad=True)
        logits = weight @ h_i + p_i.log()
        loss = torch.nn.functional.cross_entropy(logits[None], p_i.argmax()[None])
        rows.append(torch.autograd.grad(loss, weight)[0].flatten())
    return torch.stack(rows)


def test_scores_and_first_seed_are_the_longest_gradient() -> None:
    pool = make_pool(build("badge").needs, 30, 0)
    selection = build("badge").select(pool, 4, generator())
    lengths = gradients(pool).norm(dim=1)
    assert selection.scores is not None
    assert torch.allclose(selection.scores.double(), lengths, rtol=1e-4)
    assert selection.ids[0] == pool.candidates[int(lengths.argmax())]


def test_products_are_those_of_the_vectors() -> None:
    a, h = torch.randn(9, 4), torch.randn(9, 6)
    vectors, explicit = OuterProducts(a, h), (a[:, :, None] * h[:, None]).flatten(1)
    assert torch.allclose(vectors.squared_norms(), explicit.square().sum(dim=1), rtol=1e-4)
    assert torch.allclose(vectors.products(3), explicit @ explicit[3], atol=1e-4)


def test_draws_in_proportion_to_the_squared_distance() -> None:
    """The second seed over many draws, against the explicit vectors' distances to the first."""
    pool = make_pool(build("badge").needs, 12, 0)
    g = gradients(pool)
    squared = (g - g[int(g.norm(dim=1).argmax())]).square().sum(dim=1)
    expected = squared / squared.sum()
    p, h = (pool.signal(need) for need in build("badge").needs)
    vectors = OuterProducts(p - torch.nn.functional.one_hot(p.argmax(dim=1), p.shape[1]), h)
    rng, counts, draws = generator(5), torch.zeros(12, dtype=torch.float64), 2000
    for _ in range(draws):
        counts[k_means_plus_plus(vectors, 2, rng)[1]] += 1
    spread = (expected * (1 - expected) / draws).sqrt().clamp(min=1e-9)
    assert ((counts / draws - expected).abs() / spread).max() < 4.5


@pytest.mark.parametrize("seed", range(4))
def test_same_draws_as_explicit_seeding(seed: int) -> None:
    pool = make_pool(build("badge").needs, 40, 0, seed)
    g, rng = gradients(pool), generator(seed)
    seeds = [int(g.norm(dim=1).argmax())]
    while len(seeds) < 15:
        nearest = torch.cdist(g, g[seeds]).amin(dim=1).square()
        nearest[seeds] = 0
        seeds.append(draw(nearest, rng))
    chosen = build("badge").select(pool, 15, generator(seed)).ids
    assert [pool.candidates[i] for i in seeds] == list(chosen)


def test_equal_vectors_are_drawn_only_when_nothing_else_is_left() -> None:
    a = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    h = torch.tensor([[1.0], [1.0], [1.0], [2.0], [3.0], [3.0]])
    for seed in range(20):
        seeds = k_means_plus_plus(OuterProducts(a, h), 6, generator(seed))
        assert sorted(seeds) == list(range(6))
        assert {float(h[i]) for i in seeds[:3]} == {1.0, 2.0, 3.0}


def test_draw_never_takes_a_weight_of_zero() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    assert {draw(weights, generator(s)) for s in range(50)} == {1, 3}
