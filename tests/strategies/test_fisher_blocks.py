"""BAIT in blocks: its trace by matrices written out, and how near it comes to the exact form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bait import explicit
from test_two_stage import Pool
from torch import Tensor

from upslope.errors import SelectionError
from upslope.strategies import build
from upslope.strategies.fisher_blocks import LARGEST, FallingValues, blocks_of
from upslope.strategies.two_stage import select_in_cells


def written_out(pool: Pool, chosen: list[int], labelled: list[int]) -> float:
    """tr(M^-1 F) by gradients of autograd."""
    p, h = (pool.signals[name].double() for name in ("probabilities", "features"))
    of = torch.stack(explicit(p / p.sum(dim=1, keepdim=True), h))
    free = [i for i in range(len(pool)) if i not in labelled]
    ridge = 0.01 * torch.eye(of.shape[1], dtype=of.dtype)
    matrix = ridge + of[[*chosen, *labelled]].sum(dim=0)
    return float(torch.linalg.solve(matrix, of[free].sum(dim=0)).trace())


def choose(pool: Pool, budget: int, labelled: list[int], cell: int = 50) -> tuple[list[int], float]:
    rng = torch.Generator().manual_seed(2)
    selection = select_in_cells(build("bait"), pool, budget, rng, labelled=labelled, cell=cell)
    assert "blocks" in selection.notes
    return [int(id_) for id_ in selection.ids], selection.notes["trace"]


@pytest.mark.parametrize("known", [0, 30])
@pytest.mark.parametrize("budget", [3, 40, 150])
def test_the_trace_is_that_of_matrices_written_out(budget: int, known: int) -> None:
    pool, labelled = Pool(240), list(range(0, 240, 8))[:known]
    chosen, trace = choose(pool, budget, labelled)
    assert len(set(chosen) - set(labelled)) == budget
    assert trace == pytest.approx(written_out(pool, chosen, labelled), rel=1e-6)


@pytest.mark.parametrize("known", [0, 100])
def test_leaves_little_more_than_the_exact_form(known: int) -> None:
    pool, labelled = Pool(1500), list(range(0, 1500, 15))[:known]
    view = pool.view("bait", labelled)
    exact = build("bait").select(view, 60, torch.Generator()).notes["trace"]
    _, trace = choose(pool, 60, labelled, cell=150)
    chance = torch.randperm(1500, generator=torch.Generator().manual_seed(0)).tolist()
    by_chance = written_out(pool, [i for i in chance if i not in labelled][:60], labelled)
    assert exact * (1 - 1e-6) <= trace <= 1.1 * exact
    assert trace <= 0.7 * by_chance


@settings(deadline=None)  # which a machine under load would miss
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(1, 5), st.randoms())
def test_of_values_that_fall_the_largest_are_taken(
    start: list[int], together: int, random: object
) -> None:
    now = torch.tensor(start, dtype=torch.float64)
    values = FallingValues(now.clone(), lambda rows: now[rows])
    taken: set[int] = set()
    while len(taken) < len(start):
        count = min(together, len(start) - len(taken))
        expected = sorted(now[[i for i in range(len(start)) if i not in taken]].tolist())[-count:]
        rows = values.take(count)
        assert sorted(now[rows].tolist()) == expected
        assert not taken & set(rows)
        taken |= set(rows)
        now -= torch.tensor([random.random() * 3 for _ in start])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("budget", "blocks"), [(1, -(-100 // LARGEST)), (80, 20), (400, 100), (900, 100)]
)
def test_blocks_hold_every_position_once(budget: int, blocks: int) -> None:
    positions = np.arange(0, 2000, 2)
    parts = blocks_of(positions, 10, budget, torch.Generator().manual_seed(0))
    assert len(parts) == blocks
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(np.concatenate(parts).tolist()) == positions.tolist()
    assert all((np.diff(part) > 0).all() for part in parts)


def spoil(pool: Pool, name: str, value: float) -> Pool:
    values: Tensor = pool.signals[name].clone()
    values[200, 0] = value
    pool.signals[name] = values
    return pool


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("features", torch.nan, "NaN or infinite"),
        ("features", 1e7, "rounding would hide the ridge"),
        ("probabilities", 2.0, "probabilities"),
    ],
)
def test_signals_of_any_block_are_checked(name: str, value: float, told: str) -> None:
    with pytest.raises(SelectionError, match=told):
        choose(spoil(Pool(240), name, value), 5, [])


def test_information_beyond_the_digits_is_refused_as_by_the_exact_form() -> None:
    pool = Pool(240)
    pool.signals["features"] = 1e4 * pool.signals["features"]
    with pytest.raises(SelectionError, match="rounding would decide"):
        build("bait").select(pool.view("bait"), 20, torch.Generator())
    with pytest.raises(SelectionError, match="rounding would decide"):
        choose(pool, 20, [])
