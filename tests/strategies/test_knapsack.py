"""The knapsack against all subsets, and the committee that chooses by it."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from pools import generator, make_pool

from upslope.errors import ConfigError, ModelError, SelectionError
from upslope.pool import Need
from upslope.signals import build as build_signal
from upslope.signals.boundary import boundary_length
from upslope.strategies import build
from upslope.strategies.costs import read_costs
from upslope.strategies.knapsack import knapsack
from upslope.tasks.classification import Classification
from upslope.tasks.segmentation import Segmentation


def optimum(values: list[float], costs: list[int], budget: int) -> float:
    best = 0.0
    for mask in itertools.product((False, True), repeat=len(values)):
        if sum(itertools.compress(costs, mask)) <= budget:
            best = max(best, sum(itertools.compress(values, mask)))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_is_the_best_of_all_subsets_and_leaves_no_room(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randint(1, 10)
    whole = seed % 2 == 0  # many ties
    values = [rng.choice([0.0, 1.0, 2.0]) if whole else rng.random() for _ in range(n)]
    costs = [rng.randint(1, 7) for _ in range(n)]
    budget = rng.randint(min(costs), sum(costs) + 3)
    chosen = knapsack(values, costs, budget)
    assert chosen == sorted(set(chosen))
    spent = sum(costs[i] for i in chosen)
    assert spent <= budget
    assert sum(values[i] for i in chosen) == pytest.approx(optimum(values, costs, budget))
    assert all(costs[i] > budget - spent for i in set(range(n)) - set(chosen))


def test_unit_costs_take_the_largest_and_ties_the_first() -> None:
    values = [0.5, 0.9, 0.5, 0.1, 0.5, 0.0]
    assert knapsack(values, [1] * 6, 3) == [0, 1, 2]
    assert knapsack([0.0] * 4, [1] * 4, 2) == [0, 1]


def test_greedy_by_value_or_by_value_a_cost_would_be_wrong() -> None:
    assert knapsack([10.0, 6.0, 6.0], [5, 3, 3], 6) == [1, 2]
    assert knapsack([3.0, 10.0], [1, 5], 5) == [1]


def test_a_table_of_many_rows() -> None:
    rng = random.Random(0)
    values, costs = [rng.random() for _ in range(3000)], [rng.randint(1, 30) for _ in range(3000)]
    chosen = knapsack(values, costs, 500)
    # No fractional filling by value a cost is better by more than what one sample holds.
    order = sorted(range(3000), key=lambda i: -values[i] / costs[i])
    left, bound = 500, 0.0
    for i in order:
        share = min(1.0, left / costs[i])
        bound, left = bound + share * values[i], left - int(share * costs[i])
        if left <= 0:
            break
    total = sum(values[i] for i in chosen)
    assert bound - 1 < total <= bound + 1e-9


def test_what_cannot_be_bought() -> None:
    with pytest.raises(SelectionError, match="cheapest of 2 costs 4"):
        knapsack([1.0, 1.0], [4, 5], 3)
    with pytest.raises(SelectionError, match=r"at least 1 but got 1\.0 and 0"):
        knapsack([1.0], [0], 3)
    with pytest.raises(SelectionError, match="`cost_unit`"):
        knapsack([1.0] * 40_000, [10**6] * 40_000, 10**6)


def test_the_committee_buys_the_most_disagreement(tmp_path: Path) -> None:
    file = tmp_path / "costs.csv"
    rng = random.Random(3)
    cost = {f"u{i:03d}": rng.choice([0.5, 2.5, 4.0]) for i in range(9)}
    file.write_text("id,cost\n" + "".join(f"{i},{c}\n" for i, c in cost.items()))
    strategy = build("qbc", costs=str(file), cost_budget=10, cost_unit=0.5)
    pool = make_pool(strategy.needs, 9, 0)
    selection = strategy.select(pool, 1, generator())
    values = pool.signal(strategy.needs[0]).double().tolist()
    value = dict(zip(pool.candidates, values, strict=True))
    whole = [int(2 * c) for c in cost.values()]
    total = sum(value[i] for i in selection.ids)
    assert total == pytest.approx(optimum(values, whole, 20))
    assert selection.notes["cost"] == sum(cost[i] for i in selection.ids) <= 10
    assert [value[i] for i in selection.ids] == sorted(value[i] for i in selection.ids)[::-1]


def test_costs_by_predicted_boundaries_are_rounded_up() -> None:
    strategy = build("qbc", costs="boundary", cost_budget=100, cost_unit=10)
    pool = make_pool(strategy.needs, 4, 0)
    pool.signals[strategy.needs[1]][:] = torch.tensor([0.0, 10.0, 11.0, 95.0])
    assert strategy.units(pool) == [1, 1, 2, 10]  # type: ignore[attr-defined]


def test_boundaries_of_masks_by_hand() -> None:
    masks = torch.tensor([[[0, 0, 1], [0, 2, 1]], [[3, 3, 3], [3, 3, 3]]])
    assert boundary_length(masks).tolist() == [4.0, 0.0]
    signal = build_signal(Need.of("boundary-length"))
    logits = torch.nn.functional.one_hot(masks, 4).movedim(-1, 1).float()
    model = torch.nn.Identity()
    assert signal.compute(model, Segmentation(num_classes=4), logits).tolist() == [4.0, 0.0]
    with pytest.raises(ModelError, match="Expected a mask"):
        signal.compute(model, Classification(num_classes=4), logits[:, :, 0, 0])


def test_costs_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="together"):
        build("qbc", costs="boundary")
    with pytest.raises(ConfigError, match="together"):
        build("qbc", cost_budget=3)
    with pytest.raises(ConfigError, match="cannot be read"):
        build("qbc", costs=str(tmp_path / "none.csv"), cost_budget=3)
    for text, words in (
        ("id;cost\na;1\n", "columns"),
        ("id,cost\na,-1\n", "line 2"),
        ("id,cost\na,1\na,1\n", "line 3"),
        ("id,cost,cost\na,1,2\n", "one column"),
    ):
        file = tmp_path / f"{words}.csv"
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            build("qbc", costs=str(file), cost_budget=3)
    file = tmp_path / "some.csv"
    file.write_text("id,cost\nu000,1\n")
    strategy = build("qbc", costs=str(file), cost_budget=3)
    with pytest.raises(SelectionError, match=r"2 of 3 have none, first \['u001'"):
        strategy.select(make_pool(strategy.needs, 3, 0), 1, generator())


def test_costs_are_read_anew_once_the_file_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "costs.csv"
    file.write_text("\ufeffid,cost\na,1\n", encoding="utf-8")
    assert read_costs(str(file)) == {"a": 1.0}
    file.write_text("id,cost\na,2.5\n", encoding="utf-8")
    assert read_costs(str(file)) == {"a": 2.5}
