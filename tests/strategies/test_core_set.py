"""Core-set against brute force over every subset."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from pools import generator, make_pool
from torch import Tensor

from upslope.pool import PoolView
from upslope.strategies import build, core_set, distances
from upslope.strategies.core_set import k_center


def features(pool: PoolView) -> tuple[Tensor, Tensor]:
    (need,) = build("core-set").needs
    return pool.signal(need).double(), pool.labelled_signal(need).double()


def radius(x: Tensor, centres: Tensor, outliers: int = 0) -> float:
    """The directly computed cover radius, the `outliers` farthest left out."""
    nearest = torch.cdist(x, centres).amin(dim=1).sort().values
    return float(nearest[len(x) - 1 - outliers])


def best_radius(x: Tensor, y: Tensor, budget: int, outliers: int = 0) -> float:
    subsets = combinations(range(len(x)), budget)
    return min(radius(x, torch.cat([y, x[list(s)]]), outliers) for s in subsets)


@pytest.mark.parametrize("labelled", [0, 1, 5])
def test_greedy_takes_the_farthest_each_time(labelled: int) -> None:
    pool = make_pool(build("core-set").needs, 25, labelled)
    x, y = features(pool)
    chosen = [pool.candidates.index(i) for i in build("core-set").select(pool, 8, generator()).ids]
    centres = y
    if not labelled:
        assert chosen[0] == int((x - x.mean(dim=0)).norm(dim=1).argmin())
        centres = x[chosen[:1]]
    for pick in chosen[0 if labelled else 1 :]:
        assert pick == int(torch.cdist(x, centres).amin(dim=1).argmax())
        centres = torch.cat([centres, x[pick][None]])


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_within_twice_the_best_and_tells_its_radius(seed: int) -> None:
    pool = make_pool(build("core-set").needs, 12, 2, seed)
    x, y = features(pool)
    selection = build("core-set").select(pool, 3, generator())
    chosen = [pool.candidates.index(i) for i in selection.ids]
    attained = radius(x, torch.cat([y, x[chosen]]))
    assert selection.notes["radius"] == pytest.approx(attained, rel=1e-4)
    assert attained <= 2 * best_radius(x, y, 3) * (1 + 1e-6)


@pytest.mark.parametrize("outliers", [0, 1, 2])
@pytest.mark.parametrize("labelled", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_robust_is_the_best_of_all_subsets(seed: int, labelled: int, outliers: int) -> None:
    pool = make_pool(build("core-set").needs, 12, labelled, seed)
    x, y = features(pool)
    strategy = build("core-set-robust", outliers=(outliers + 0.5) / 12, gap=1e-4)
    selection = strategy.select(pool, 3, generator())
    chosen = [pool.candidates.index(i) for i in selection.ids]
    best = best_radius(x, y, 3, outliers)
    attained = radius(x, torch.cat([y, x[chosen]]), outliers)
    assert attained == pytest.approx(best, rel=2e-4)
    assert selection.notes["radius"] == pytest.approx(attained)
    assert selection.notes["lower_bound"] <= best * (1 + 1e-4)
    assert selection.notes["gap"] <= 1e-4


def test_robust_gives_the_greedy_answer_and_its_bound_where_time_is_out() -> None:
    pool = make_pool(build("core-set").needs, 60, 4)
    hurried = build("core-set-robust", seconds=1e-9).select(pool, 6, generator())
    assert hurried.ids == build("core-set").select(pool, 6, generator()).ids
    assert hurried.notes["lower_bound"] == pytest.approx(hurried.notes["radius"] / 2)
    assert hurried.notes["gap"] == pytest.approx(1)


def pool_of(x: Tensor, y: Tensor) -> PoolView:
    (need,) = build("core-set-robust").needs
    ids = [f"id-{i}" for i in range(len(x))]
    return PoolView(ids, {need: x}, [f"label-{i}" for i in range(len(y))], {need: y})


def test_robust_tells_its_radius_in_the_unit_of_the_features() -> None:
    pool = make_pool(build("core-set").needs, 12, 2)
    x, y = features(pool)
    strategy = build("core-set-robust", outliers=0.1)
    small = strategy.select(pool_of(x / 100, y / 100), 3, generator())
    whole = strategy.select(pool_of(x, y), 3, generator())
    assert small.ids == whole.ids
    assert small.notes["radius"] == pytest.approx(whole.notes["radius"] / 100)


def test_robust_does_not_run_after_outliers_as_the_greedy_answer_does() -> None:
    """Whose radius is more than twice the best one, so that its half is no bound."""
    groups = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    near = torch.randn(5, 2, generator=generator()) / 100
    x = torch.cat([groups[0] + near, groups[1] + near, torch.tensor([[900.0, 0.0], [-900.0, 0.0]])])
    pool = pool_of(x, torch.zeros(1, 2))
    selection = build("core-set-robust", outliers=2.5 / 12).select(pool, 2, generator())
    assert {int(i.removeprefix("id-")) // 5 for i in selection.ids} == {0, 1}
    assert 0 <= selection.notes["lower_bound"] <= selection.notes["radius"] < 0.1


def test_robust_with_a_gap_of_0_ends_where_no_radius_lies_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It asked for a cover of the same radius until its time was over."""
    radii = []
    cover = core_set._cover

    def remember(x: Tensor, to_labels: Tensor, radius: float, *options: float) -> object:
        radii.append(radius)
        return cover(x, to_labels, radius, *options)

    monkeypatch.setattr(core_set, "_cover", remember)
    pool = make_pool(build("core-set").needs, 5, 1)
    selection = build("core-set-robust", gap=0.0, seconds=5.0).select(pool, 2, generator())
    assert len(radii) == len(set(radii)) < 64
    assert selection.notes["gap"] < 1e-15


def test_robust_gives_the_greedy_answer_where_a_program_would_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core_set, "PAIRS", 12)
    pool = make_pool(build("core-set").needs, 12, 2)
    selection = build("core-set-robust").select(pool, 3, generator())
    assert selection.ids == build("core-set").select(pool, 3, generator()).ids
    assert selection.notes["gap"] == pytest.approx(1)


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(build("core-set").needs, 40, 30)
    whole = build("core-set").select(pool, 10, generator())
    monkeypatch.setattr(distances, "BLOCK", 64)
    assert build("core-set").select(pool, 10, generator()).ids == whole.ids


def test_a_far_offset_costs_no_accuracy() -> None:
    x = torch.randn(30, 4, generator=generator())
    plain, _, _ = k_center(*distances.subtract_mean(x, x[:2]), 5)
    moved, _, _ = k_center(*distances.subtract_mean(x + 1000, x[:2] + 1000), 5)
    assert moved == plain
