"""Two stages: what each cell gives where samples do not count alike, against the exact forms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from test_two_stage import CLASSES, WIDTH, Pool
from torch import Tensor

from upslope import strategies
from upslope.strategies.binary_bait import information_roots
from upslope.strategies.cell_choices import apportion
from upslope.strategies.two_stage import select_in_cells

N = 1500


def pick(strategy: strategies.QueryStrategy, pool: Pool, labelled: Sequence[int] = ()) -> list[int]:
    rng = torch.Generator().manual_seed(2)
    selection = select_in_cells(strategy, pool, 30, rng, labelled=labelled, cell=100)
    return [int(id_) for id_ in selection.ids]


def pick_exactly(strategy: strategies.QueryStrategy, pool: Pool) -> list[int]:
    view = pool.view(strategy.name)
    view = type(view)(view.candidates, {n: pool.signals[n.name] for n in strategy.needs})
    selection = strategy.select(view, 30, torch.Generator().manual_seed(2))
    return [int(id_) for id_ in selection.ids]


def sure_but_for(pool: Pool, unsure: Tensor) -> None:
    """Make the network sure of all samples but some. unsure: (n,) booleans."""
    p = torch.full((len(pool), CLASSES), 5e-4)
    p[:, 0] = 1 - p[:, 1:].sum(dim=1)
    p[unsure] = 1 / CLASSES
    pool.signals["probabilities"] = p
    sketches = torch.randn(len(pool), WIDTH, generator=torch.Generator().manual_seed(3))
    pool.signals["gradient-sketch"] = torch.where(unsure[:, None], sketches, 1e-3 * sketches)
    pool.signals["feature-dropout"] = 3.0 * unsure


def with_unsure(count: int) -> tuple[Pool, Tensor]:
    """A pool in which the network is unsure of some samples alone, close together in the features,
    and which they are: (n,) booleans."""
    pool = Pool(N)
    x = pool.signals["features"]
    unsure = torch.zeros(N, dtype=torch.bool)
    unsure[(x - x[7]).norm(dim=1).argsort()[:count]] = True
    sure_but_for(pool, unsure)
    return pool, unsure


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("badge", {}),
        ("gradnorm-diverse", {"spread": "k-means++"}),
        ("gradnorm-diverse", {"spread": "dpp"}),
        ("gradnorm-diverse", {"spread": "power"}),
    ],
)
def test_cells_of_samples_that_hardly_count_give_few(name: str, options: dict[str, str]) -> None:
    """One sample in fifteen is unsure."""
    pool, unsure = with_unsure(100)
    strategy = strategies.build(name, **options)
    exactly = unsure[pick_exactly(strategy, pool)].float().mean()
    assert exactly >= 0.8
    assert unsure[pick(strategy, pool)].float().mean() >= 0.9 * exactly


@pytest.mark.parametrize("count", [100, 400])
def test_binary_bait_leaves_little_more_unknown_than_the_exact_form(count: int) -> None:
    """Shares by the size of cells left 1.9 and 2.9 times as much."""
    pool, _ = with_unsure(count)
    strategy = strategies.build("binary-bait")
    phi = information_roots(pool.signals["probabilities"], pool.signals["features"])

    def left(picks: Sequence[int]) -> float:
        known = torch.eye(WIDTH, dtype=phi.dtype) + phi[list(picks)].T @ phi[list(picks)]
        return float(torch.linalg.solve(known, phi.T @ phi / N).trace())

    assert left(pick(strategy, pool)) < 1.5 * left(pick_exactly(strategy, pool))


@pytest.mark.parametrize("labelled", [(), tuple(range(5))])
def test_dropquery_asks_for_the_unsure_of_the_whole_pool(labelled: tuple[int, ...]) -> None:
    """Most cells see no label, and some have no sample that is unsure."""
    pool, unsure = with_unsure(800)
    labelled = tuple(int(i) for i in (~unsure).nonzero().flatten()[list(labelled)])
    picks = pick(strategies.build("dropquery"), pool, labelled)
    share = float(unsure[picks].float().mean())
    assert share == 1 if labelled else 0.3 < share < 0.8


def test_a_cell_of_gradients_near_zero_is_no_error_beside_others() -> None:
    """As in the exact form, which refuses such sketches only where there are no others."""
    pool = Pool(N)
    unsure = torch.arange(N) % 4 == 0
    sure_but_for(pool, unsure)
    pool.signals["gradient-sketch"][~unsure] *= 1e-9
    for spread in ("k-means++", "dpp", "power"):
        picks = pick(strategies.build("gradnorm-diverse", spread=spread), pool)
        assert bool(unsure[picks].all())


def test_weights_beyond_floating_point_count_by_their_ratios() -> None:
    pool = Pool(N)
    longest = pool.signals["gradient-sketch"].norm(dim=1).topk(30).indices.tolist()
    strategy = strategies.build("gradnorm-diverse", spread="power", beta=4000)
    for unit in (1e4, 1e-8):
        pool.signals["gradient-sketch"] *= unit
        assert len(set(pick(strategy, pool)) & set(longest)) >= 28


def test_what_a_cell_cannot_give_the_others_give_in_proportion() -> None:
    none, free = np.zeros(4, dtype=int), np.array([3, 100, 100, 100])
    assert apportion(63, np.array([96.0, 3, 2, 1]), none, free).tolist() == [3, 30, 20, 10]
    assert apportion(8, np.array([5.0, 0, 0, 0]), none, np.array([2, 1, 3, 2])).sum() == 8
    assert apportion(8, np.zeros(4), none, np.array([8, 8, 16, 0])).tolist() == [2, 2, 4, 0]
