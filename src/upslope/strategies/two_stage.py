"""Selection from pools of 10^6 samples and more: cells of similar samples first, exact within.

The strategies that look at all pairs take n K or n^2 distances. In two stages, the pool of n is
divided into cells of about `cell` samples (k-means, `cells`). A strategy goes one of these ways:

    search    one search over all cells, which skips distances that cannot, or hardly, count
              (`cell_search`): core-set, whose choice is the exact one, and LCMD
    balls     one search over all cells, with balls and densities of cells (`cell_balls`): DCoM
    blocks    one design of all, with candidates in blocks at random in place of cells
              (`fisher_blocks`): BAIT
    by gain   the strategy itself chooses within each cell, and the choices of all cells are taken
              by what each gains (`cell_choices`)
    by share  the same, but each cell gives its share of the budget, in proportion to its samples
    by weight the same, in proportion to what the strategy weighs its samples by: gradient norms

Within a cell a strategy is shown the labelled samples of that cell and of its nearest neighbours.
What is read at once is one cell, so that the signals may lie on the disk. `TWO_STAGE` says which
way a strategy goes, with its time and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from upslope.errors import ConfigError, SelectionError
from upslope.pool import PoolView, Selection
from upslope.posterior import in_double
from upslope.strategies.bait import Bait, check_size
from upslope.strategies.base import QueryStrategy, WeighsCandidates
from upslope.strategies.cell_balls import searching_balls
from upslope.strategies.cell_choices import AHEAD, GreedyRun, Weights, apportion, take_by_gain
from upslope.strategies.cell_search import Search, farthest, farthest_of_largest, searching
from upslope.strategies.cells import Positions
from upslope.strategies.coverage import CoverageStrategy
from upslope.strategies.dcom import DCoM
from upslope.strategies.divided_pool import (
    DividedPool,
    SignalSource,
    by_state,
    divide_pool,
    plain,
    vectors_of,
    view_at,
)
from upslope.strategies.dropquery import DropQuery, DropQueryInCells
from upslope.strategies.fisher_blocks import blocks_of, choose_in_blocks

CELL = 4000
"""Samples of a cell: 4,000 x 256 in single precision are 4 MB, which a processor's cache holds."""


@dataclass(frozen=True)
class TwoStage:
    """How a strategy chooses in two stages.

    way: a search, "balls", "blocks", "gain", "share" or "weight", as above. unit: cells are
    of vectors of unit length, as the strategy's distances are. cost: time and memory, in the
    symbols of `QueryStrategy.cost`; c is the size of a cell. kept: bytes per sample that a search
    keeps.
    """

    way: Callable[[Search], list[int]] | Literal["balls", "blocks", "gain", "share", "weight"]
    unit: bool
    cost: str
    kept: int = 0


_DIVIDE = "n min(n / c, 256) d for cells; memory 4 n bytes,"
TWO_STAGE: dict[str, TwoStage] = {
    "core-set": TwoStage(
        farthest,
        False,
        f"{_DIVIDE} 28 n + (m + K) d; (m + K) (8 c d + n / 1000), at most n K d",
        kept=28,
    ),
    "lcmd": TwoStage(
        farthest_of_largest,
        False,
        f"{_DIVIDE} 28 n + (m + K) dim; (m + K) (4 c dim + 4 n), at most n K dim",
        kept=28,
    ),
    "dcom": TwoStage(
        "balls",
        True,
        f"{_DIVIDE} 18 n + 8 c d + m (4 d + 530); (2 n + 8 m + K) c d",
        kept=18,
    ),
    "badge": TwoStage("weight", False, f"{_DIVIDE} c (C + d); K c (C + d)"),
    "gradnorm-diverse": TwoStage("weight", False, f"{_DIVIDE} 2 c dim; K c dim"),
    "prob-cover": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d; 3 n c d"),
    "max-herding": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d; 3 n c d"),
    "u-herding": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d + m d; 3 n c d + m^2 d / 2"),
    "facility-location": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d; 3 n c d"),
    "typiclust": TwoStage("share", True, f"{_DIVIDE} c d; 300 K c d for k-means, then n c d"),
    "dropquery": TwoStage("weight", True, f"{_DIVIDE} c d; 300 K c d for k-means"),
    "bait": TwoStage(
        "blocks",
        False,
        "memory 48 (C d)^2 + 8 (c + 2 K) (d + 3 C^2) bytes; (3 / 4 n C^2 + 3 K C^3) d^2",
    ),
    "binary-bait": TwoStage("weight", False, f"{_DIVIDE} 2 c d + d^2; n / c d^3 + n d^2 + 2 K c d"),
}
"""Strategy -> how it chooses in two stages. Others score each sample by itself, or are refused."""


def select_in_cells(
    strategy: QueryStrategy,
    source: SignalSource,
    budget: int,
    rng: torch.Generator,
    *,
    labelled: Sequence[int] = (),
    labels: Tensor | None = None,
    cell: int = CELL,
) -> Selection:
    """Choose `budget` distinct samples of a pool in two stages; an approximation, as described.

    strategy: one of `TWO_STAGE`. source: the signals that it needs. rng: of everything random.
    labelled: positions that are labelled already, and not chosen again. labels: the class of each,
    any number for strategies that do not read it; -1 of those that were passed over, which count as
    neither labelled nor candidates. cell: samples of a cell.

    Returns: the ids in order of choice; notes say how many cells, or blocks, there were.

    Raises:
        ConfigError: a strategy that has no two stages.
        SelectionError: a budget below 1 or above the samples left; no labels where they are read.
    """
    _check(strategy, source, budget, labelled)
    stages = TWO_STAGE[strategy.name]
    if stages.way == "blocks" and len(source) > 2 * cell:
        assert isinstance(strategy, Bait)
        return _select_in_blocks(strategy, source, budget, rng, labelled, labels, cell)
    pool = divide_pool(
        source, vectors_of(strategy, source, unit=stages.unit), cell, rng, labelled, labels
    )
    picks, notes = _pick(strategy, pool, budget, rng)
    return Selection(tuple(source.ids(picks)), None, {**notes, "cells": float(len(pool.free))})


def _check(
    strategy: QueryStrategy, source: SignalSource, budget: int, labelled: Sequence[int]
) -> None:
    """Raise for a strategy that has no two stages, or a budget beyond the samples left."""
    if strategy.name not in TWO_STAGE:
        raise ConfigError(refusal(strategy, len(source)))
    left = len(source) - len(set(labelled))
    if not 1 <= budget <= left:
        raise SelectionError(
            f"Expected a budget between 1 and the {left} candidates left but got {budget}."
        )


def _pick(
    strategy: QueryStrategy, pool: DividedPool, budget: int, rng: torch.Generator
) -> tuple[list[int], Mapping[str, float]]:
    """The positions chosen, in order, and notes; of a single cell every strategy chooses itself."""
    way = TWO_STAGE[strategy.name].way
    if isinstance(strategy, CoverageStrategy) and len(pool.free) > 1:
        labelled = np.sort(np.concatenate(pool.labelled_of)).tolist()
        features = pool.source.rows(plain(strategy.needs[0]), labelled)
        strategy = strategy.in_cells(features.flatten(start_dim=1).float())
    if isinstance(strategy, DropQuery) and len(pool.free) > 1:
        strategy = _dropquery_in_cells(strategy, pool, budget)
    if way == "balls" and len(pool.free) > 1:
        assert isinstance(strategy, DCoM)
        return _pick_by_balls(strategy, pool, budget)
    if callable(way) and len(pool.free) > 1:
        return _pick_by_search(way, pool, budget), {}

    def choose(number: int, count: int) -> GreedyRun:
        return _choose(strategy, *pool.view(strategy, number), count, rng)

    if way == "gain":
        return _pick_by_gain(pool, budget, choose), {}
    _, labels, free = pool.counts
    if way == "weight" and len(pool.free) > 1:
        shares = apportion(budget, _weigh_cells(strategy, pool), np.zeros_like(labels), free)
    else:
        shares = apportion(budget, *pool.counts)
    runs = [choose(number, share)[0] for number, share in enumerate(shares.tolist()) if share]
    return [position for run in runs for position in run], {}


def _dropquery_in_cells(strategy: DropQuery, pool: DividedPool, budget: int) -> DropQueryInCells:
    changes = plain(strategy.needs[1])
    parts = (pool.source.rows(changes, members.tolist()) for members in pool.free)
    has_labels = any(len(members) for members in pool.labelled_of)
    return strategy.in_cells(parts, budget, has_labels=has_labels)


def _weigh_cells(strategy: QueryStrategy, pool: DividedPool) -> Weights:
    """Return the sum of the weights of each cell's candidates, the largest being 1, (cells,)."""
    assert isinstance(strategy, WeighsCandidates)
    sums = np.full(len(pool.free), -np.inf)
    for number, members in enumerate(pool.free):
        if len(members):
            view, _ = view_at(strategy, pool.source, members, members[:0], None)
            sums[number] = float(strategy.log_weights(view).double().logsumexp(dim=0))
            if not sums[number] < np.inf:
                strategy.check(view, 1)  # which names the samples
    heaviest = sums.max()
    weights: Weights = np.exp(sums - (heaviest if np.isfinite(heaviest) else 0.0))
    return weights


def _pick_by_balls(
    strategy: DCoM, pool: DividedPool, budget: int
) -> tuple[list[int], Mapping[str, float]]:
    features, posteriors = (partial(pool.source.rows, plain(need)) for need in strategy.needs)
    parts = pool.cells, pool.free, pool.labelled_of, pool.labels_at
    with searching_balls(features, posteriors, *parts) as (balls, order):
        places, notes = balls.choose(strategy, budget)
        picks: list[int] = order[places].tolist()
    return picks, notes


def _pick_by_search(
    next_choices: Callable[[Search], list[int]], pool: DividedPool, budget: int
) -> list[int]:
    labelled = np.sort(np.concatenate(pool.labelled_of))
    parts = pool.cells, pool.free, labelled
    with searching(pool.vectors.raw, *parts, budget) as (search, order):
        picks: list[int] = order[next_choices(search)].tolist()
    return picks


def _pick_by_gain(
    pool: DividedPool, budget: int, choose: Callable[[int, int], GreedyRun]
) -> list[int]:
    sizes, labels, free = pool.counts
    counts_at_first = apportion(budget, sizes, labels, free, AHEAD if len(pool.free) > 1 else 1)
    return take_by_gain(budget, sizes, counts_at_first, free, choose)


def _choose(
    strategy: QueryStrategy,
    view: PoolView,
    positions: Mapping[str, int],
    count: int,
    rng: torch.Generator,
) -> GreedyRun:
    selection = strategy.select(view, count, rng)
    return [positions[id_] for id_ in selection.ids], list(selection.gains or ())


def _select_in_blocks(
    strategy: Bait,
    source: SignalSource,
    budget: int,
    rng: torch.Generator,
    labelled: Sequence[int],
    labels: Tensor | None,
    size: int,
) -> Selection:
    is_free, has_label = by_state(len(source), labelled, labels)
    blocks = blocks_of(np.flatnonzero(is_free), size, budget, rng)
    places = np.flatnonzero(has_label)
    of_labelled = [places[start : start + size] for start in range(0, len(places), size)]

    def read(positions: Positions) -> tuple[Tensor, Tensor]:
        view, _ = view_at(strategy, source, positions, places[:0], None)
        strategy.check(view, 1)
        p, h = (view.signal(need).double() for need in strategy.needs)
        check_size(p.shape[1], h.shape[1])
        strategy.check_lengths(h)
        return in_double(p), h

    # As many threads as torch has: another number would give other bits.
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        picks, trace = choose_in_blocks(
            read, blocks, of_labelled, budget, strategy.ridge, strategy.check_information
        )
    notes = {"trace": trace, "blocks": float(len(blocks))}
    return Selection(tuple(source.ids(picks)), None, notes)


def refusal(strategy: object, rows: int) -> str:
    """Return why a strategy does not choose from a pool of `rows` samples, and what would."""
    cost = getattr(strategy, "cost", "")
    whole = f": it looks at all n = {rows:,} samples at once ({cost})" if cost else ""
    return (
        f"Expected a strategy with one score per sample, or one that chooses in two stages "
        f"({', '.join(TWO_STAGE)}), but got {getattr(strategy, 'name', strategy)}{whole}."
    )
