"""Selection in two stages: exact where there is one cell, near it where there are several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope import strategies
from upslope.errors import ConfigError, SelectionError
from upslope.pool import Need, PoolView
from upslope.posterior import closeness
from upslope.strategies import cell_search
from upslope.strategies.cell_choices import apportion, take_by_gain
from upslope.strategies.cells import divide
from upslope.strategies.kernel_width import smallest_distance
from upslope.strategies.two_stage import TWO_STAGE, select_in_cells

CLASSES, WIDTH = 3, 6
NAMES = sorted(TWO_STAGE)


class Pool:
    """Signals in memory; remembers the most rows that were read at once."""

    def __init__(self, length: int, *, alike: bool = False, classes: int = CLASSES) -> None:
        rng = torch.Generator().manual_seed(5)
        centres = 3 * torch.randn(12, WIDTH, generator=rng)
        of = torch.randint(12, (length,), generator=rng)
        x = centres[of] + torch.randn(length, WIDTH, generator=rng) * (0.2 + 0.05 * of[:, None])
        if alike:
            x = torch.ones_like(x)
        p = (x @ torch.randn(WIDTH, classes, generator=rng)).softmax(dim=1)
        changes = (p.argsort(dim=1)[:, 0] + torch.arange(length)) % 4
        self.signals = {
            "features": x, "probabilities": p, "gradient-sketch": x, "feature-dropout": changes,
        }  # fmt: skip
        self.most = 0

    def __len__(self) -> int:
        return len(self.signals["features"])

    def ids(self, positions: Sequence[int]) -> list[str]:
        return [f"{p:06d}" for p in positions]

    def rows(self, need: Need, positions: Sequence[int]) -> Tensor:
        self.most = max(self.most, len(positions))
        return self.signals[need.name][torch.as_tensor(np.asarray(positions, dtype=np.int64))]

    def blocks(self, need: Need) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self), 100):
            yield start, self.signals[need.name][start : start + 100]

    def view(self, name: str, labelled: Sequence[int] = ()) -> PoolView:
        needs = built(name).needs
        free = [i for i in range(len(self)) if i not in set(labelled)]
        return PoolView(
            self.ids(free),
            {n: self.rows(n, free) for n in needs},
            self.ids(labelled),
            {n: self.rows(n, labelled) for n in needs if n.labelled},
            self.labels(labelled),
        )

    def labels(self, labelled: Sequence[int]) -> Tensor:
        return (torch.tensor(list(labelled), dtype=torch.int64) * 7919 % 5).clamp(max=CLASSES - 1)


def built(name: str) -> strategies.QueryStrategy:
    return strategies.build(name, **({"temperature": 1} if name == "u-herding" else {}))


def choose(
    name: str, pool: Pool, budget: int, labelled: Sequence[int] = (), **options: Any
) -> list[int]:
    labels = pool.labels(labelled) if built(name).reads_labels else None
    rng = torch.Generator().manual_seed(2)
    selection = select_in_cells(
        built(name), pool, budget, rng, labelled=labelled, labels=labels, **options
    )
    return [int(id_) for id_ in selection.ids]


@pytest.mark.parametrize("labelled", [(), (3, 50, 99)])
@pytest.mark.parametrize("name", NAMES)
def test_one_cell_is_the_strategy_itself(name: str, labelled: tuple[int, ...]) -> None:
    pool = Pool(120)
    expected = built(name).select(pool.view(name, labelled), 9, torch.Generator().manual_seed(2))
    assert choose(name, pool, 9, labelled=labelled) == [int(id_) for id_ in expected.ids]


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_met_by_distinct_samples_that_are_not_labelled(name: str) -> None:
    pool, labelled = Pool(700), range(0, 700, 9)
    chosen = choose(name, pool, 40, labelled=labelled, cell=50)
    assert len(chosen) == len(set(chosen)) == 40
    assert not set(chosen) & set(labelled)
    assert chosen == choose(name, pool, 40, labelled=labelled, cell=50)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_all_alike_are_divided_too(name: str) -> None:
    assert len(set(choose(name, Pool(400, alike=True), 30, cell=40))) == 30


def test_more_classes_than_features_divide_no_pool() -> None:
    """Without labels u-herding is max-herding, whose cells are of features."""
    pool = Pool(700, classes=4 * WIDTH)
    assert choose("u-herding", pool, 40, cell=50) == choose("max-herding", pool, 40, cell=50)


def nearest(x: Tensor, chosen: Sequence[int]) -> Tensor:
    return torch.cdist(x, x[list(chosen)]).min(dim=1).values


@pytest.mark.parametrize("labelled", [(), range(0, 3000, 150)])
def test_core_set_takes_what_the_exact_form_takes(labelled: Sequence[int]) -> None:
    pool = Pool(3000)
    exact = built("core-set").select(pool.view("core-set", labelled), 60, torch.Generator())
    chosen = choose("core-set", pool, 60, cell=100, labelled=labelled)
    assert chosen == [int(i) for i in exact.ids]


def farthest_in_double(x: Tensor, labelled: Sequence[int], budget: int) -> list[int]:
    """Greedy k-center by differences in double precision, without expanding squares."""
    x = x.double()
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype)
    chosen: list[int] = []
    for centre in labelled:
        nearest = torch.minimum(nearest, (x - x[centre]).square().sum(dim=1))
    for _ in range(budget):
        is_cold = not chosen and not len(labelled)
        to_mean = (x - x.mean(dim=0)).square().sum(dim=1)
        chosen.append(int(to_mean.argmin() if is_cold else nearest.argmax()))
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(dim=1))
    return chosen


@pytest.mark.parametrize("labelled", [(), range(0, 60, 3)])
@pytest.mark.parametrize("form", ["tight clusters", "one giant", "offset in double"])
def test_core_set_is_exact_where_distances_are_small_beside_the_vectors(
    form: str, labelled: Sequence[int]
) -> None:
    rng = torch.Generator().manual_seed(1)
    pool = Pool(1500)
    x = torch.randn(1500, WIDTH, generator=rng)
    if form == "tight clusters":
        x = 100 * x[torch.randint(5, (1500,), generator=rng)] + 0.05 * x
    elif form == "one giant":
        x = torch.cat([0.01 * x[1:], torch.full((1, WIDTH), 1e4)])
    else:
        x = x.double() + 1e9
    pool.signals["features"] = x
    expected = farthest_in_double(x, labelled, 60)
    assert choose("core-set", pool, 60, cell=100, labelled=labelled) == expected


@pytest.mark.parametrize("name", ["core-set", "bait"])
def test_what_was_passed_over_is_neither_labelled_nor_a_candidate(name: str) -> None:
    """The choice is that from a pool without it."""
    pool, gone = Pool(600), set(range(300, 600, 2))
    labelled = [*range(0, 300, 9), *sorted(gone)]
    labels = torch.tensor([-1 if i in gone else 0 for i in labelled])
    rng = torch.Generator().manual_seed(2)
    selection = select_in_cells(
        built(name), pool, 30, rng, labelled=labelled, labels=labels, cell=60
    )
    rest = [i for i in range(600) if i not in gone]
    view = pool.view(name, [i for i in labelled if i not in gone])
    kept = [i for i, id_ in enumerate(view.candidates) if int(id_) not in gone]
    view = replace(
        view,
        candidates=[view.candidates[i] for i in kept],
        signals={need: values[kept] for need, values in view.signals.items()},
    )
    exact = built(name).select(view, 30, torch.Generator().manual_seed(2))
    assert {int(i) for i in selection.ids} <= set(rest) - set(labelled)
    if name == "core-set":
        assert selection.ids == exact.ids
    else:
        assert exact.notes["trace"] * (1 - 1e-6) < selection.notes["trace"]
        assert selection.notes["trace"] < 1.1 * exact.notes["trace"]


@pytest.mark.parametrize("labelled", [(), range(0, 3000, 150)])
def test_lcmd_leaves_within_a_twentieth_of_the_squared_distance_of_the_exact_form(
    labelled: Sequence[int],
) -> None:
    pool = Pool(3000)
    x = pool.signals["gradient-sketch"]
    exact = built("lcmd").select(pool.view("lcmd", labelled), 60, torch.Generator())

    def left(chosen: Sequence[int]) -> float:
        return float(nearest(x, [*labelled, *chosen]).square().mean())

    chosen = choose("lcmd", pool, 60, cell=100, labelled=labelled)
    assert left(chosen) <= 1.05 * left([int(i) for i in exact.ids])


@pytest.mark.parametrize("probes", [1, 100])
def test_lcmd_is_exact_where_all_cells_are_probed_and_near_it_otherwise(
    probes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_search, "PROBES", probes)
    pool = Pool(1200)
    exact = built("lcmd").select(pool.view("lcmd"), 30, torch.Generator())
    chosen = choose("lcmd", pool, 30, cell=60)
    same = len(set(chosen) & {int(i) for i in exact.ids})
    assert same == 30 if probes == 100 else same >= 10


@pytest.mark.parametrize("name", ["facility-location", "max-herding", "typiclust", "prob-cover"])
def test_coverage_is_within_three_hundredths_of_the_exact(name: str) -> None:
    pool = Pool(2000)
    unit = torch.nn.functional.normalize(pool.signals["features"], dim=1)
    exact = built(name).select(pool.view(name), 60, torch.Generator().manual_seed(2))

    def coverage(chosen: Sequence[int]) -> float:
        return float((1 - nearest(unit, chosen).square() / 2).mean())

    whole = coverage([int(i) for i in exact.ids])
    assert coverage(choose(name, pool, 60, cell=200)) >= 0.97 * whole


@pytest.mark.parametrize("known", [5, 30])
def test_u_herding_has_the_kernel_and_the_weights_of_the_pool_in_all_cells(known: int) -> None:
    """Most cells see none of the labels, which lie close together."""
    pool = Pool(2000)
    unit = torch.nn.functional.normalize(pool.signals["features"], dim=1)
    labelled = (unit - unit[7]).norm(dim=1).argsort()[: 20 * known : 20].tolist()
    view = pool.view("u-herding", labelled)
    exact = built("u-herding").select(view, 60, torch.Generator())
    width = smallest_distance(unit[labelled])
    weights = closeness(pool.signals["probabilities"])
    weights[labelled] = 0

    def coverage(chosen: Sequence[int]) -> float:
        near = nearest(unit, [*labelled, *chosen]) / width
        return float((-near.square()).exp() @ weights / weights.sum())

    whole = coverage([int(i) for i in exact.ids])
    in_cells = coverage(choose("u-herding", pool, 60, labelled=labelled, cell=200))
    assert in_cells >= 0.98 * whole


def test_no_more_than_two_cells_of_rows_are_read_at_once() -> None:
    pool = Pool(5000)
    choose("facility-location", pool, 50, cell=100)
    assert pool.most <= 64 * 50  # the sample of k-means; cells have 200 at most
    pool.most = 0
    rng = torch.Generator().manual_seed(0)
    need = Need.of("features")
    cells = divide(lambda p: pool.rows(need, p), lambda: pool.blocks(need), 5000, 100, rng)
    assert max(map(len, cells.members)) <= 200
    assert sorted(np.concatenate(cells.members).tolist()) == list(range(5000))


@settings(deadline=None)  # which a machine under load would miss
@given(st.data())
def test_shares_add_up_and_no_cell_gives_more_than_it_has(data: st.DataObject) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=8)))
    labelled = np.array([data.draw(st.integers(0, size)) for size in sizes])
    free = sizes - labelled
    if not free.sum():
        return
    budget = data.draw(st.integers(1, int(free.sum())))
    shares = apportion(budget, sizes, labelled, free)
    assert shares.sum() == budget
    assert ((shares >= 0) & (shares <= free)).all()
    more = apportion(budget, sizes, labelled, free, 2)
    assert ((more >= np.minimum(1, free)) & (more <= free)).all()
    assert more.sum() >= budget


def test_choices_of_all_cells_come_by_gain_and_cells_that_are_used_up_choose_on() -> None:
    gains = {0: [9.0, 5.0, 1.0], 1: [8.0, 7.0, 6.0, 4.0, 0.5], 2: [3.0]}
    asked: list[tuple[int, int]] = []

    def run(cell: int, count: int) -> tuple[list[int], list[float]]:
        asked.append((cell, count))
        part = gains[cell][:count]
        return [10 * cell + i for i in range(len(part))], part

    free = np.array([3, 5, 1])
    chosen = take_by_gain(8, free, np.array([1, 1, 1]), free, run)
    assert chosen == [0, 10, 11, 12, 1, 13, 20, 2]
    assert asked == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (1, 4), (0, 3), (1, 5)]


def test_shares_are_in_proportion_with_labels_counted() -> None:
    none = np.zeros(3, dtype=int)
    sizes = np.array([100, 300, 600])
    assert apportion(10, sizes, none, sizes).tolist() == [1, 3, 6]
    labelled = np.array([0, 0, 10])
    assert apportion(10, sizes, labelled, sizes - labelled).tolist() == [2, 6, 2]


def test_what_has_no_two_stages_and_budgets_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"but got batch-bald: it looks at all n = 20 samples at once \(.*memory n T C\)",
    ):
        select_in_cells(built("batch-bald"), Pool(20), 2, torch.Generator())
    with pytest.raises(SelectionError, match="between 1 and the 18"):
        choose("core-set", Pool(20), 19, labelled=[1, 2])
