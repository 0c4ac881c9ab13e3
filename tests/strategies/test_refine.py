"""REFINE: what each round leaves, and that UHerding has the last word."""

from __future__ import annotations

import dataclasses

import torch
from pools import generator, make_pool

from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.refine import Refine


def test_without_rounds_it_is_u_herding() -> None:
    strategy = Refine(rounds=0)
    pool = make_pool(strategy.needs, 60, 8)
    expected = build("u-herding").select(pool, 9, generator()).ids
    assert strategy.select(pool, 9, generator()).ids == expected


def test_a_round_leaves_the_union_of_the_batches_of_the_ensemble() -> None:
    """One batch of each strategy, each from the whole pool: the union is known in advance."""
    strategy = Refine(rounds=1, batches=1, subset=1000)
    pool = make_pool(strategy.needs, 60, 8)
    rng, union = generator(), set()
    for part in strategy.ensemble:
        union |= set(part.select(pool, 5, rng).ids)
    selection = strategy.select(pool, 5, generator())
    assert selection.notes["left"] == len(union) < 60
    assert set(selection.ids) <= union
    rows = torch.tensor([i for i, id_ in enumerate(pool.candidates) if id_ in union])
    left = PoolView(
        candidates=[pool.candidates[i] for i in rows.tolist()],
        signals={need: values[rows] for need, values in pool.signals.items()},
        labelled=pool.labelled,
        labelled_signals=pool.labelled_signals,
        labels=pool.labels,
    )
    assert selection.ids == build("u-herding").select(left, 5, generator()).ids


def test_rounds_shrink_the_pool_to_the_most_that_is_allowed() -> None:
    strategy = Refine(rounds=2, batches=16, subset=40, most=12)
    pool = make_pool(strategy.needs, 80, 8)
    assert strategy.select(pool, 6, generator()).notes["left"] <= 12
    wide = dataclasses.replace(strategy, most=3)
    assert wide.select(pool, 6, generator()).notes["left"] == 6  # never fewer than the budget
