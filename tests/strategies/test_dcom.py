"""DCoM against its definition, written out over the whole distance matrix at every step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pools import generator, make_pool

from upslope.errors import SelectionError
from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.dcom import RESOLUTION, DCoM, competence


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
    unsure = scaled((1 - p[:, 0] + p[:, 1]).tolist())
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


def test_competence_is_one_where_all_is_covered_and_half_at_the_centre() -> None:
    assert competence(1.0, 30, 0.9) == pytest.approx(1)
    assert competence(0.9, 30, 0.9) == pytest.approx((1 + math.exp(-3)) / 2)
    assert competence(0.0, 30, 0.9) < 1e-9


def test_labels_of_another_kind_are_refused() -> None:
    pool = dataclasses.replace(make_pool(build("dcom").needs, 20, 5), labels=None)
    with pytest.raises(SelectionError, match="Take u-herding"):
        build("dcom").select(pool, 3, generator())
