"""BatchBALD against the joint mutual information, by enumeration of all answers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from pools import generator, make_pool
from torch import Tensor

from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.batch_bald import LabelConfigurations


def information(p: Tensor) -> float:
    """I(y_1 ... y_b ; w) from the table of all joint answers. p: (b, T, C)."""
    b, passes, classes = p.shape
    joint, conditional = 0.0, 0.0
    for answer in product(range(classes), repeat=b):
        given = torch.ones(passes, dtype=torch.float64)
        for i, label in enumerate(answer):
            given = given * p[i, :, label]
        mean = float(given.mean())
        joint -= mean * float(torch.tensor(mean).log())
        conditional -= float(torch.xlogy(given, given).mean())
    return joint - conditional


@pytest.mark.parametrize("seed", range(3))
def test_takes_the_largest_joint_information(seed: int) -> None:
    strategy = build("batch-bald", answers=10**6)
    pool = make_pool(strategy.needs, 12, 0, seed)
    p = pool.signal(strategy.needs[0]).double()
    chosen: list[int] = []
    for pick in strategy.select(pool, 4, generator()).ids:
        values = [information(p[[*chosen, i]]) if i not in chosen else -1.0 for i in range(12)]
        position = pool.candidates.index(pick)
        assert values[position] == pytest.approx(max(values), abs=1e-5)
        chosen.append(position)


def test_networks_that_hardly_disagree_are_told_apart() -> None:
    """The informations are some 10^-7 of the entropies, which single precision rounds."""
    (need,) = build("batch-bald").needs
    p = torch.randn(12, 20, 3, generator=generator()).mul(3e-3).softmax(dim=2)
    pool = PoolView([f"{i:02d}" for i in range(12)], {need: p})
    chosen: list[int] = []
    for pick in build("batch-bald", answers=10**6).select(pool, 4, generator()).ids:
        alone = [information(p[[*chosen, i]].double()) for i in range(12) if i not in chosen]
        assert information(p[[*chosen, int(pick)]].double()) == pytest.approx(max(alone), abs=1e-12)
        chosen.append(int(pick))


@pytest.mark.parametrize("seed", range(3))
def test_what_half_precision_leaves_out_of_a_sum_does_not_decide(seed: int) -> None:
    """Posteriors of half precision miss the sum of 1 by more than these informations are."""
    (need,) = build("batch-bald").needs
    p = torch.randn(12, 4, 3, generator=generator(seed)).mul(3e-2).softmax(dim=2).bfloat16()
    whole = p.double() / p.double().sum(dim=2, keepdim=True)
    pool = PoolView([f"{i:02d}" for i in range(12)], {need: p})
    chosen: list[int] = []
    for pick in build("batch-bald", answers=10**6).select(pool, 4, generator()).ids:
        alone = [information(whole[[*chosen, i]]) for i in range(12) if i not in chosen]
        assert information(whole[[*chosen, int(pick)]]) == pytest.approx(max(alone), abs=1e-12)
        chosen.append(int(pick))


def test_drawn_answers_estimate_the_listed_ones() -> None:
    p = make_pool(build("batch-bald").needs, 6, 0).signal(build("batch-bald").needs[0])
    listed, drawn = LabelConfigurations.none(5), LabelConfigurations.none(5)
    rng = generator()
    for i in range(4):
        listed.extend(p[i], 10**6, rng)
        drawn.extend(p[i], 4000, rng) if i < 3 else drawn.extend(p[i], 200, rng)
    assert len(listed.pi) == 4**4
    assert len(drawn.pi) == 200
    assert float(listed.pi.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(drawn.entropy(p[4:]), listed.entropy(p[4:]), atol=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_drawn_by_their_probability_once_as_many_are_listed_as_may_be(
    seed: int,
) -> None:
    """4^5 answers fill the list exactly: with ten classes and the default of 1000, 10^3 do."""
    p = torch.randn(8, 6, 4, generator=generator(seed)).mul(3).softmax(dim=2).double()
    listed, drawn = LabelConfigurations.none(6), LabelConfigurations.none(6)
    rng = generator()
    for i in range(7):
        listed.extend(p[i], 4**7, rng)
        drawn.extend(p[i], 4**5, rng)
    assert len(drawn.pi) == 4**5
    assert torch.allclose(drawn.entropy(p), listed.entropy(p), atol=0.05)


def test_a_copy_of_a_chosen_sample_tells_less_than_it_did_alone() -> None:
    """BALD takes both of two equal samples; BatchBALD takes another first."""
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    half = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    strategy = build("batch-bald")
    need = strategy.needs[0]
    pool = make_pool((), 4, 0)
    mixed = torch.stack(
        [certain.repeat(2, 1), certain.repeat(2, 1), half.repeat(2, 1), half.repeat(2, 1)]
    )
    # The last sample splits the networks along another line than the first two do.
    mixed[3] = torch.stack([other[0], other[0], other[1], other[1]])
    pool.signals[need] = mixed  # type: ignore[index]
    assert strategy.select(pool, 2, generator()).ids == ("u000", "u003")


def test_a_hundred_samples_do_not_underflow() -> None:
    strategy = build("batch-bald", answers=100)
    pool = make_pool(strategy.needs, 120, 0)
    selection = strategy.select(pool, 100, generator())
    assert len(set(selection.ids)) == 100
