"""Power sampling: the law of its draws, the exponent, and classes that take turns."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import get_args, get_type_hints

import pytest
import torch
from pools import generator, make_pool

from upslope.errors import SelectionError
from upslope.pool import PoolView
from upslope.strategies import REGISTRY, build
from upslope.strategies.power import SCORES, Power, in_turn


def test_every_score_is_a_strategy_of_the_table() -> None:
    choices = get_args(get_args(get_type_hints(Power, include_extras=True)["score"])[0])
    assert tuple(SCORES) == choices
    assert all(REGISTRY[name] is kind for name, kind in SCORES.items())


@pytest.mark.parametrize("labelled", [0, 4])
def test_draws_in_proportion_to_the_score_to_an_exponent_that_rises(labelled: int) -> None:
    strategy = build("power", score="margin", exponent=1, rise=0.5, strata=False)
    (need,) = strategy.needs
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    pool = PoolView(
        ["a", "b", "c", "d"], {need: scores}, labelled=[f"l{i}" for i in range(labelled)]
    )
    beta = 1 + 0.5 * labelled  # a budget of one
    counts = Counter(strategy.select(pool, 1, generator(s)).ids[0] for s in range(3000))
    expected = scores**beta / (scores**beta).sum()
    for name, share in zip(pool.candidates, expected.tolist(), strict=True):
        assert counts[name] / 3000 == pytest.approx(share, abs=5 * (0.25 / 3000) ** 0.5)
    assert strategy.select(pool, 1, generator()).notes["beta"] == beta


def test_a_large_exponent_takes_the_top_of_each_class() -> None:
    strategy = build("power", score="entropy", exponent=1e6)
    entropy, classes = strategy.needs
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    of = torch.eye(3)[[0, 0, 0, 0, 1, 2]]
    pool = PoolView(list("abcdef"), {entropy: scores, classes: of})
    assert set(strategy.select(pool, 3, generator()).ids) == {"a", "e", "f"}
    assert set(strategy.select(pool, 5, generator()).ids) == {"a", "b", "c", "e", "f"}
    plain = dataclasses.replace(strategy, strata=False)
    assert plain.select(pool, 3, generator()).ids == ("a", "b", "c")


def test_a_mask_belongs_to_every_class_seen_in_it() -> None:
    members = torch.tensor([[True, True], [True, False], [True, False], [False, True]])
    for seed in range(20):
        chosen = in_turn([0, 1, 2, 3], members, 2, generator(seed))
        assert len(set(chosen)) == 2
        # One class takes 0, which both have; the other then takes the next of its own.
        assert chosen in ([0, 1], [0, 3])
    assert in_turn([3, 2, 1, 0], torch.zeros(4, 2, dtype=torch.bool), 3, generator()) == [3, 2, 1]


def test_classes_take_turns_in_a_large_pool() -> None:
    n, classes = 20_000, 200  # entry by entry, its members would take minutes to read
    members = torch.zeros(n, classes, dtype=torch.bool)
    members[torch.arange(n), torch.arange(n) % classes] = True
    order = torch.randperm(n, generator=generator()).tolist()
    chosen = in_turn(order, members, 2 * classes, generator())
    rank = {i: k for k, i in enumerate(order)}
    for c in range(classes):
        assert [i for i in chosen if i % classes == c] == sorted(
            range(c, n, classes), key=rank.__getitem__
        )[:2]


def test_scores_below_zero_are_refused() -> None:
    strategy = build("power", score="margin")
    pool = make_pool(strategy.needs, 10, 0)
    pool.signals[strategy.needs[0]][3] = -0.5
    with pytest.raises(SelectionError, match=r"the lowest is -0\.5"):
        strategy.select(pool, 2, generator())
