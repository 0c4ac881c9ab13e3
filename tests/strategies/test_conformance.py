"""What every strategy of the table promises, whatever it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pools import generator, make_pool, permuted

from upslope.errors import SelectionError
from upslope.experiment.checks import check_selection
from upslope.pool import CostBudgeted, PoolView, Selection, Strategy
from upslope.strategies import REGISTRY, QueryStrategy, build

POSTERIORS = ("probabilities", "mc-posteriors")
# Where the default takes seconds on a pool of forty.
QUICK: dict[str, dict[str, float]] = {
    "batch-bald": {"answers": 60},
    "uncertain-gcn": {"steps": 20},
    "core-gcn": {"steps": 20},
    "refine": {"rounds": 2, "batches": 8},
}
every_strategy = pytest.mark.parametrize("name", REGISTRY)


def make(name: str) -> QueryStrategy:
    return build(name, **QUICK.get(name, {}))


def one_class(posteriors: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(posteriors[..., :1])


def checked(strategy: QueryStrategy, pool: PoolView, budget: int, seed: int = 0) -> Selection:
    """Select, and hold the answer against what every selection must be."""
    selection = strategy.select(pool, budget, generator(seed))
    assert isinstance(selection, Selection)
    assert isinstance(selection.ids, tuple)
    assert all(type(chosen) is str for chosen in selection.ids)
    assert len(selection.ids) == budget
    assert len(set(selection.ids)) == budget
    assert set(selection.ids) <= set(pool.candidates)
    if selection.scores is not None:
        assert selection.scores.shape == (len(pool),)
        assert not selection.scores.isnan().any()
    return selection


@every_strategy
def test_is_a_frozen_dataclass_that_the_protocol_describes(name: str) -> None:
    strategy = make(name)
    assert isinstance(strategy, Strategy)
    assert strategy.name == name
    assert hash(strategy) == hash(make(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.name = "other"  # type: ignore[misc]


@every_strategy
@pytest.mark.parametrize("budget", [1, 7, 40])
@pytest.mark.parametrize("labelled", [0, 1, 12])
def test_takes_the_exact_budget_from_the_candidates(name: str, budget: int, labelled: int) -> None:
    strategy = make(name)
    checked(strategy, make_pool(strategy.needs, 40, labelled), budget)


@every_strategy
def test_a_pool_of_one(name: str) -> None:
    strategy = make(name)
    for labelled in (0, 3):
        assert checked(strategy, make_pool(strategy.needs, 1, labelled), 1).ids == ("u000",)


@every_strategy
def test_same_generator_same_choice(name: str) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, 50, 10)
    assert checked(strategy, pool, 9, seed=3).ids == checked(strategy, pool, 9, seed=3).ids


@every_strategy
def test_does_not_depend_on_the_order_of_the_candidates(name: str) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, 50, 10)
    first = checked(strategy, pool, 9)
    shuffled = permuted(pool)
    second = checked(strategy, shuffled, 9)
    assert first.ids == second.ids
    if first.scores is not None:
        assert second.scores is not None
        by_id = dict(zip(pool.candidates, first.scores.tolist(), strict=True))
        for chosen, score in zip(shuffled.candidates, second.scores.tolist(), strict=True):
            assert score == pytest.approx(by_id[chosen], rel=1e-5, abs=1e-6)


@every_strategy
def test_leaves_the_pool_and_the_global_generator_alone(name: str) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, 30, 8)
    before = {need: values.clone() for need, values in pool.signals.items()}
    state = torch.get_rng_state()
    checked(strategy, pool, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[need], pool.signals[need]) for need in before)


@every_strategy
@pytest.mark.parametrize("labelled", [0, 6])
def test_all_samples_the_same(name: str, labelled: int) -> None:
    """Duplicate images, constant features, ties everywhere: still distinct ids, and no hang."""
    strategy = make(name)
    pool = make_pool(strategy.needs, 20, labelled)
    same = dataclasses.replace(
        pool,
        signals={need: values[:1].expand_as(values) for need, values in pool.signals.items()},
        labelled_signals={
            need: pool.signals[need][:1].expand_as(values)
            for need, values in pool.labelled_signals.items()
        },
    )
    for budget in (1, 6, 20):
        checked(strategy, same, budget)


@every_strategy
def test_signals_of_zeros(name: str) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, 20, 5)
    zeros = dataclasses.replace(
        pool,
        signals={
            need: torch.full_like(values, 0.25 if need.name in POSTERIORS else 0.0)
            for need, values in pool.signals.items()
        },
    )
    checked(strategy, zeros, 6)


@every_strategy
def test_one_class(name: str) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, 20, 5)
    single = dataclasses.replace(
        pool,
        signals={
            need: one_class(values) if need.name in POSTERIORS else values
            for need, values in pool.signals.items()
        },
        labelled_signals={
            need: one_class(values) if need.name in POSTERIORS else values
            for need, values in pool.labelled_signals.items()
        },
        labels=torch.zeros(5, dtype=torch.int64),
    )
    checked(strategy, single, 6)


@every_strategy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_a_score_that_is_not_finite_and_names_the_sample(name: str, value: float) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, 20, 5)
    for need in strategy.needs:
        broken = pool.signals[need].clone()
        broken[13] = value
        with pytest.raises(SelectionError, match="u013"):
            strategy.select(
                dataclasses.replace(pool, signals={**pool.signals, need: broken}), 3, generator()
            )


@every_strategy
@pytest.mark.parametrize("budget", [0, -1, 21])
def test_refuses_a_budget_that_cannot_be_met(name: str, budget: int) -> None:
    strategy = make(name)
    with pytest.raises(SelectionError, match=f"got {budget}"):
        strategy.select(make_pool(strategy.needs, 20, 5), budget, generator())


@every_strategy
def test_refuses_an_empty_pool(name: str) -> None:
    strategy = make(name)
    with pytest.raises(SelectionError, match="0 candidates"):
        strategy.select(make_pool(strategy.needs, 0, 5), 1, generator())


@every_strategy
def test_refuses_a_missing_signal(name: str) -> None:
    strategy = make(name)
    if not strategy.needs:
        return
    pool = dataclasses.replace(make_pool(strategy.needs, 20, 5), signals={})
    with pytest.raises(SelectionError, match=strategy.needs[0].name):
        strategy.select(pool, 3, generator())


@pytest.mark.parametrize("budget", [10.0, 25.0, 1e6])
@pytest.mark.parametrize("n", [1, 40])
def test_with_a_cost_budget_takes_what_it_buys(budget: float, n: int) -> None:
    """The one exception from the exact count, which a strategy declares by its cost budget."""
    strategy = build("qbc", costs="boundary", cost_budget=budget)
    assert isinstance(strategy, CostBudgeted)
    pool = make_pool(strategy.needs, n, 5)
    pool.signals[strategy.needs[1]].mul_(9).add_(0.5)
    first = strategy.select(pool, 1, generator())
    assert 1 <= len(first.ids) == len(set(first.ids))
    assert set(first.ids) <= set(pool.candidates)
    cost = dict(zip(pool.candidates, pool.signals[strategy.needs[1]].ceil().tolist(), strict=True))
    assert first.notes["cost"] == sum(cost[i] for i in first.ids) <= budget
    assert first.ids == strategy.select(permuted(pool), 99, generator()).ids
    assert len(first.ids) == n or budget < 1e6


def test_only_a_cost_budget_frees_from_the_exact_count() -> None:
    view = make_pool((), 5, 0)
    two = Selection(("u000", "u001"))
    with pytest.raises(SelectionError, match="choose 3 distinct"):
        check_selection(make("qbc"), view, two, 3)
    by_cost = build("qbc", costs="boundary", cost_budget=5)
    check_selection(by_cost, view, two, 3)
    for wrong in ((), ("u000", "u000"), ("other",)):
        with pytest.raises(SelectionError, match="choose 1 or more distinct"):
            check_selection(by_cost, view, Selection(wrong), 3)
    for name in REGISTRY:
        assert getattr(make(name), "cost_budget", None) is None, name
