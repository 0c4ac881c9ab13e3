"""Design, then coverage: against the two parts, each run by itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pools import generator, make_pool

from upslope.strategies import build
from upslope.strategies.design_herding import DesignHerding


def explicit(pool, strategy: DesignHerding, budget: int) -> list[str]:
    """The design by whole matrices, then the coverage by the whole kernel."""
    features, tempered, plain = strategy.needs
    h, y = pool.signal(features).double(), pool.labelled_signal(features).double()

    def root(need_values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        q = need_values.double().amax(dim=1)
        return (q * (1 - q)).sqrt()[:, None] * x

    phi = root(pool.signal(plain), h)
    known = root(pool.labelled_signal(plain), y)
    n, m, d = len(phi), len(known), phi.shape[1]
    target = (phi.T @ phi + known.T @ known) / (n + m)
    base = strategy.ridge * torch.eye(d, dtype=torch.float64) + known.T @ known / (m + budget)
    offered: list[int] = []
    for _ in range(strategy.times * budget):
        traces = {
            i: float(
                torch.linalg.solve(
                    base + phi[[*offered, i]].T @ phi[[*offered, i]] * budget / (m + budget), target
                ).trace()
            )
            for i in range(n)
            if i not in offered
        }
        offered.append(min(traces, key=traces.__getitem__))

    unit = torch.nn.functional.normalize(torch.cat([h, y]), dim=1)
    distances = (unit[:, None] - unit[None]).norm(dim=2)
    width = distances[n:, n:].masked_fill(torch.eye(m, dtype=torch.bool), torch.inf).min()
    k = torch.exp(-((distances / width) ** 2))[:, :n]
    top = pool.signal(tempered).double().sort(dim=1, descending=True).values
    u = 1 - top[:, 0] + top[:, 1]
    covered, chosen = k[n:].amax(dim=0), []
    for _ in range(budget):
        gains = ((k[:n] - covered).clamp(min=0) * u).sum(dim=1)
        chosen.append(max((i for i in offered if i not in chosen), key=lambda i: float(gains[i])))
        covered = torch.maximum(covered, k[chosen[-1]])
    return [pool.candidates[i] for i in chosen]


@pytest.mark.parametrize("seed", range(4))
def test_is_the_design_and_then_the_coverage_written_out(seed: int) -> None:
    strategy = DesignHerding(times=3)
    pool = make_pool(strategy.needs, 30, 8, seed)
    assert list(strategy.select(pool, 4, generator()).ids) == explicit(pool, strategy, 4)


def test_a_design_of_everything_is_u_herding() -> None:
    strategy = DesignHerding(times=10)
    pool = make_pool(strategy.needs, 40, 8)
    assert strategy.select(pool, 6, generator()).ids == (
        build("u-herding").select(pool, 6, generator()).ids
    )


def test_a_design_of_the_batch_alone_leaves_no_choice() -> None:
    strategy = DesignHerding(times=1)
    pool = make_pool(strategy.needs, 40, 8)
    one = strategy.select(pool, 6, generator())
    wide = dataclasses.replace(strategy, times=2).select(pool, 6, generator())
    assert len(set(one.ids)) == 6
    assert one.ids != wide.ids
