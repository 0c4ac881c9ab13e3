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

Within a cell a strategy is shown the labelled samples of that cell and of its nearest neighbours.
What is read at once is one cell, so that the signals may lie on the disk. `TWO_STAGE` says which
way a strategy goes, with its time and memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from upslope.errors import ConfigError, SelectionError
from upslope.pool import Need, PoolView, Selection
from upslope.strategies.bait import Bait, check_size
from upslope.strategies.base import QueryStrategy
from upslope.strategies.cell_balls import searching_balls
from upslope.strategies.cell_choices import AHEAD, Counts, GreedyRun, apportion, take_by_gain
from upslope.strategies.cell_search import (
    PROBES,
    Search,
    farthest,
    farthest_of_largest,
    searching,
)
from upslope.strategies.cells import divide
from upslope.strategies.dcom import DCoM
from upslope.strategies.distances import normalise
from upslope.strategies.fisher_blocks import blocks_of, choose_in_blocks
from upslope.strategies.information import whole

CELL = 4000
"""Samples of a cell: 4,000 x 256 in single precision are 4 MB, which a processor's cache holds."""


class SignalSource(Protocol):
    """The signals of a pool by position, in memory or on the disk (`signal_store`)."""

    def __len__(self) -> int: ...

    def ids(self, positions: Sequence[int]) -> list[str]:
        """Return the ids of the samples at these positions."""
        ...

    def rows(self, need: Need, positions: Sequence[int]) -> Tensor:
        """Return a signal of the samples at these positions, (n, ...)."""
        ...

    def blocks(self, need: Need) -> Iterator[tuple[int, Tensor]]:
        """Yield (position of the first row, a signal of some samples), over all of the pool."""
        ...


@dataclass(frozen=True)
class TwoStage:
    """How a strategy chooses in two stages.

    way: a search, "balls", "blocks", "gain" or "share", as above. unit: cells are of vectors of
    unit length, as the strategy's distances are. cost: time and memory, in the symbols of
    `QueryStrategy.cost`; c is the size of a cell. kept: bytes per sample that a search keeps.
    """

    way: Callable[[Search], list[int]] | Literal["balls", "blocks", "gain", "share"]
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
    "badge": TwoStage("share", False, f"{_DIVIDE} c (C + d); K c (C + d)"),
    "gradnorm-diverse": TwoStage("share", False, f"{_DIVIDE} 2 c dim; K c dim"),
    "prob-cover": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d; 3 n c d"),
    "max-herding": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d; 3 n c d"),
    "u-herding": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d; 3 n c d"),
    "facility-location": TwoStage("gain", True, f"{_DIVIDE} c^2 + c d; 3 n c d"),
    "typiclust": TwoStage("share", True, f"{_DIVIDE} c d; 300 K c d for k-means, then n c d"),
    "dropquery": TwoStage("share", True, f"{_DIVIDE} c d; 300 K c d for k-means"),
    "bait": TwoStage(
        "blocks",
        False,
        "memory 48 (C d)^2 + 8 (c + 2 K) (d + 3 C^2) bytes; (3 / 4 n C^2 + 3 K C^3) d^2",
    ),
    "binary-bait": TwoStage("share", False, f"{_DIVIDE} 2 c d + d^2; n / c d^3 + n d^2 + 2 K c d"),
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
    for strategies that read it; -1 of those that were passed over. cell: samples of a cell.

    Returns: the ids in order of choice; notes say how many cells, or blocks, there were.

    Raises:
        ConfigError: a strategy that has no two stages.
        SelectionError: a budget below 1 or above the samples left; no labels where they are read.
    """
    if strategy.name not in TWO_STAGE:
        raise ConfigError(refusal(strategy, len(source)))
    left = len(source) - len(set(labelled))
    if not 1 <= budget <= left:
        raise SelectionError(
            f"Expected a budget between 1 and the {left} candidates left but got {budget}."
        )
    stages = TWO_STAGE[strategy.name]
    if stages.way == "blocks" and len(source) > 2 * cell:
        assert isinstance(strategy, Bait)
        return _select_in_blocks(strategy, source, budget, rng, labelled, cell)
    read = _reader(strategy, source, stages.unit)
    cells = divide(read.rows, read.blocks, len(source), cell, rng)
    is_labelled = np.zeros(len(source), dtype=bool)
    is_labelled[list(labelled)] = True
    labels_at = _by_position(labels, labelled, len(source))
    is_known = is_labelled if labels_at is None else is_labelled & (labels_at >= 0).numpy()
    of_cell = [members[is_known[members]] for members in cells.members]
    free = [members[~is_labelled[members]] for members in cells.members]
    sizes, counts_of_labels, left_of = (
        np.array([len(m) for m in group]) for group in (cells.members, of_cell, free)
    )

    def choose(number: int, count: int) -> GreedyRun:
        labelled_near = np.concatenate([of_cell[i] for i in cells.neighbours(number, PROBES)])
        view, positions = _view(strategy, source, free[number], labelled_near, labels_at)
        return _choose(strategy, view, positions, count, rng)

    notes: Mapping[str, float] = {}
    if stages.way == "balls" and len(free) > 1:
        assert isinstance(strategy, DCoM)
        features, posteriors = (partial(source.rows, _plain(need)) for need in strategy.needs)
        readers = features, posteriors
        with searching_balls(*readers, cells, free, of_cell, labels_at) as (balls, order):
            places, notes = balls.choose(strategy, budget)
            picks = order[places].tolist()
    elif callable(stages.way) and len(free) > 1:
        with searching(read.raw, cells, np.flatnonzero(is_labelled), budget) as (search, order):
            picks = order[stages.way(search)].tolist()
    elif stages.way == "gain":
        ahead = AHEAD if len(free) > 1 else 1
        counts = apportion(budget, sizes, counts_of_labels, left_of, ahead)
        picks = take_by_gain(budget, sizes, counts, left_of, choose)
    else:
        shares = apportion(budget, sizes, counts_of_labels, left_of).tolist()
        runs = [choose(number, share)[0] for number, share in enumerate(shares) if share]
        picks = [position for run in runs for position in run]
    return Selection(tuple(source.ids(picks)), None, {**notes, "cells": float(len(cells.members))})


def _select_in_blocks(
    strategy: Bait,
    source: SignalSource,
    budget: int,
    rng: torch.Generator,
    labelled: Sequence[int],
    size: int,
) -> Selection:
    is_labelled = np.zeros(len(source), dtype=bool)
    is_labelled[list(labelled)] = True
    blocks = blocks_of(np.flatnonzero(~is_labelled), size, budget, rng)
    labels = np.flatnonzero(is_labelled)
    of_labelled = [labels[start : start + size] for start in range(0, len(labels), size)]

    def read(positions: Counts) -> tuple[Tensor, Tensor]:
        view, _ = _view(strategy, source, positions, labels[:0], None)
        strategy.check(view, 1)
        p, h = (view.signal(need).double() for need in strategy.needs)
        check_size(p.shape[1], h.shape[1])
        strategy.check_lengths(h)
        return whole(p), h

    # As many threads as torch has: another number would give other bits.
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        picks, trace = choose_in_blocks(read, blocks, of_labelled, budget, strategy.ridge)
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


@dataclass(frozen=True)
class _Vectors:
    """The vectors whose distances divide the pool: the widest signal of a strategy."""

    source: SignalSource
    need: Need
    unit: bool

    def raw(self, positions: Sequence[int]) -> Tensor:
        return self.source.rows(self.need, positions).flatten(start_dim=1)

    def rows(self, positions: Sequence[int]) -> Tensor:
        return self._form(self.source.rows(self.need, positions))

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        return ((start, self._form(part)) for start, part in self.source.blocks(self.need))

    def _form(self, x: Tensor) -> Tensor:
        x = x.flatten(start_dim=1).float()
        return normalise(x) if self.unit else x


def _reader(strategy: QueryStrategy, source: SignalSource, unit: bool) -> _Vectors:
    needs = [_plain(need) for need in strategy.needs]
    widest = max(needs, key=lambda need: math.prod(source.rows(need, [0]).shape))
    return _Vectors(source, widest, unit)


def _plain(need: Need) -> Need:
    return Need(need.name, need.options)


def _by_position(labels: Tensor | None, labelled: Sequence[int], count: int) -> Tensor | None:
    """The label at each position that has one."""
    if labels is None:
        return None
    at = torch.zeros(count, dtype=torch.int32)
    at[list(labelled)] = labels.int()
    return at


def _view(
    strategy: QueryStrategy,
    source: SignalSource,
    candidates: Counts,
    labelled: Counts,
    labels_at: Tensor | None,
) -> tuple[PoolView, dict[str, int]]:
    """The samples at some positions as a pool, and id -> position."""
    ids = source.ids(candidates.tolist())
    view = PoolView(
        ids,
        {n: source.rows(_plain(n), candidates.tolist()).float() for n in strategy.needs},
        source.ids(labelled.tolist()),
        {
            n: source.rows(_plain(n), labelled.tolist()).float()
            for n in strategy.needs
            if n.labelled
        },
        None if labels_at is None else labels_at[torch.from_numpy(labelled)].long(),
    )
    return view, dict(zip(ids, candidates.tolist(), strict=True))


def _choose(
    strategy: QueryStrategy,
    view: PoolView,
    positions: dict[str, int],
    count: int,
    rng: torch.Generator,
) -> GreedyRun:
    selection = strategy.select(view, count, rng)
    return [positions[id_] for id_ in selection.ids], list(selection.gains or ())
