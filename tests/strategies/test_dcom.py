"""DCoM against its definition, written out over the whole distance matrix at every step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pools import generator, make_pool

from upslope.errors import SelectionError
from upslope.pool import Need, PoolView
from upslope.strategies import balls, build, cover, near_pairs
from upslope.strategies.dcom import RESOLUTION, DCoM, competence, purity


def scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low) if high > low else 0.0 for v in values]


def written_out(pool: PoolView, strategy: DCoM, budget: int) -> list[str]:
    features, posteriors = strategy.needs
    x, y = pool.signal(features), pool.labelled_signal(features)
    every = torch.nn.functional.normalize(torch.cat([x, y]).double(), dim=1)
    distance = (every[:, None] - every[None]).norm(dim=2).tolist()
    n, m, total = len(x), len(y), len(every)
    predicted = torch.cat([pool.signal(posteriors), pool.labelled_signal(posteriors)]).argmax(1)
    labels = [] if pool.labels is None else pool.labels.tolist()

    def covered_by(radii: list[float]) -> set[int]:
        return {i for i in range(total) for j in range(m) if distance[n + j][i] < radii[j]}

    threshold = 0.2 * len(covered_by([strategy.delta] * m)) / total + 0.4
    radii = []
    for j in range(m):
        low, high = 0.0, strategy.delta
        while high - low > RESOLUTION:
            middle = (low + high) / 2
            inside = [i for i in range(total) if distance[n + j][i] < middle]
            pure = sum(int(predicted[i]) == labels[j] for i in inside) >= threshold * len(inside)
            low, high = (middle, high) if pure else (low, middle)
        radii.append((low + high) / 2)
    covered = covered_by(radii)
    radius = sum(radii) / m if m else strategy.delta
    a, k = strategy.centre, strategy.slope
    weight = (1 + math.exp(-k * (1 - a))) / (1 + math.exp(-k * (len(covered) / total - a)))
    p = pool.signal(posteriors).double().sort(dim=1, descending=True).values
    unsure = scaled((1 - p[:, 0] + p[:, 1]).tolist()) if p.shape[1] > 1 else [0.0] * n
    chosen: list[int] = []
    for _ in range(budget):
        open_ = [i for i in range(total) if i not in covered]
        density = scaled([sum(distance[i][j] < radius for j in open_) for i in range(n)])
        mixture = [weight * unsure[i] + (1 - weight) * density[i] for i in range(n)]
        chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: mixture[i]))
        covered |= {i for i in range(total) if distance[chosen[-1]][i] < radius}
    return [pool.candidates[i] for i in chosen]


@pytest.mark.parametrize("labelled", [0, 3, 12])
@pytest.mark.parametrize("seed", range(3))
def test_is_the_definition_written_out(seed: int, labelled: int) -> None:
    strategy = DCoM(delta=1.1, centre=0.4, slope=6.0)
    pool = make_pool(strategy.needs, 30, labelled, seed)
    assert list(strategy.select(pool, 7, generator()).ids) == written_out(pool, strategy, 7)


def doubled(pool: PoolView, share: float, one_class: bool, dtype: torch.dtype) -> PoolView:
    """The pool with so many of its samples equal to its first ones, and in another precision."""

    def repeat(values: torch.Tensor) -> torch.Tensor:
        distinct = max(1, round(len(values) * (1 - share)))
        return values[torch.arange(len(values)) % distinct].to(dtype)

    def form(need: Need, values: torch.Tensor) -> torch.Tensor:
        return repeat(values[:, :1] * 0 + 1 if one_class and values.shape[1] == 4 else values)

    assert pool.labels is not None
    return dataclasses.replace(
        pool,
        signals={need: form(need, values) for need, values in pool.signals.items()},
        labelled_signals={need: form(need, v) for need, v in pool.labelled_signals.items()},
        labels=pool.labels * 0 if one_class else pool.labels,
    )


@pytest.mark.parametrize("most_pairs", [2**24, 60, 0])
@pytest.mark.parametrize(
    ("labelled", "share", "one_class", "dtype"),
    [
        (9, 0.0, False, torch.float32),
        (9, 0.5, False, torch.float64),
        (9, 0.9, False, torch.float32),
        (9, 0.3, True, torch.float32),
        (0, 0.4, False, torch.float32),
        (1, 0.0, True, torch.float64),
    ],
)
def test_few_pairs_and_many_ties_and_all_of_the_pool(
    labelled: int,
    share: float,
    one_class: bool,
    dtype: torch.dtype,
    most_pairs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cover, "PAIRS", most_pairs)
    monkeypatch.setattr(balls, "LABELS_AT_ONCE", 4)
    monkeypatch.setattr(balls, "BLOCK", 64)
    monkeypatch.setattr(near_pairs, "BLOCK", 50)  # tiles of 7 x 7
    strategy = DCoM(delta=0.9, centre=0.4, slope=6.0)
    pool = doubled(make_pool(strategy.needs, 33, labelled, 5), share, one_class, dtype)
    assert list(strategy.select(pool, 33, generator()).ids) == written_out(pool, strategy, 33)


@pytest.mark.parametrize("delta", [0.01, 0.1, 2.0])
def test_balls_of_every_size(delta: float) -> None:
    strategy = DCoM(delta=delta, centre=0.4, slope=6.0)
    pool = make_pool(strategy.needs, 25, 6, 2)
    assert list(strategy.select(pool, 6, generator()).ids) == written_out(pool, strategy, 6)


def test_equal_densities_are_told_apart_by_the_margin() -> None:
    """Of samples without neighbours and one label, the competence is 10^-12: a single-precision
    mixture lost the margin beside the density, and took the first ids."""
    strategy = DCoM(delta=0.1)
    h_need, p_need = strategy.needs
    directions = torch.eye(40)
    first = torch.rand(40, generator=generator()) / 2 + 0.5
    p = torch.stack([first, 1 - first], dim=1)
    pool = PoolView(
        [f"{i:02d}" for i in range(39)],
        {h_need: directions[:39], p_need: p[:39]},
        ["l"],
        {h_need: directions[39:], p_need: p[39:]},
        torch.tensor([0]),
    )
    expected = first[:39].argsort()[:10].tolist()
    assert [int(i) for i in strategy.select(pool, 10, generator()).ids] == expected


def test_competence_is_one_where_all_is_covered_and_half_at_the_centre() -> None:
    assert competence(1.0, 30, 0.9) == pytest.approx(1)
    assert competence(0.9, 30, 0.9) == pytest.approx((1 + math.exp(-3)) / 2)
    assert competence(0.0, 30, 0.9) < 1e-9


def test_a_steep_competence_is_none_where_little_is_covered() -> None:
    assert competence(0.0, 1e4, 0.9) == pytest.approx(0, abs=1e-300)
    assert competence(1.0, 1e4, 0.9) == pytest.approx(1)


@pytest.mark.parametrize("count", [5, 10, 45, 35_000])
def test_a_ball_that_has_just_the_share_is_pure(count: int) -> None:
    """Of 0.2 + 0.4, 27 of 45 and 3 of 5; in single precision one was pure and the other was not."""
    pure = balls.PureRadii(torch.zeros(1, dtype=torch.int64), 0.75, RESOLUTION)
    classes = (torch.arange(count) >= count * 3 // 5).long()
    pure.count(torch.zeros(count, dtype=torch.int64), classes, torch.full((count,), 1e-4))
    assert float(pure.radii(purity(1.0))) > 0.7


def test_labels_of_another_kind_are_refused() -> None:
    pool = dataclasses.replace(make_pool(build("dcom").needs, 20, 5), labels=None)
    with pytest.raises(SelectionError, match="Take u-herding"):
        build("dcom").select(pool, 3, generator())
