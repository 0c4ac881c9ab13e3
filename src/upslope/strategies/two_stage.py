"""Selection from pools of 10^6 samples and more: cells of similar samples first, exact within.

The strategies that look at all pairs take n K or n^2 distances. In two stages, the pool of n is
divided into cells of about `cell` samples (k-means, `cells`), and the strategy itself chooses
within each, given the labelled samples of that cell and of its nearest neighbours, either

    share     its share of the budget, in proportion to the samples that the cell has, or
    pooled    OVER times that; among all that were chosen so, it chooses again, as k-center does
              over several machines (Malkomes et al., NeurIPS 2015)

which `TWO_STAGE` says of each strategy, with time and memory. Shares keep what depends on how many
samples lie where; the largest distance, or cluster, is one of all cells, and asks for the second
choice. What is read at once is one cell, so that the signals may lie on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import ConfigError, SelectionError
from upslope.pool import Need, PoolView, Selection
from upslope.strategies.base import QueryStrategy
from upslope.strategies.cells import divide
from upslope.strategies.distances import normalise

Counts = NDArray[np.int64]

CELL = 4000
"""Samples of a cell: 4,000 x 256 in single precision are 4 MB, which a processor's cache holds."""
OVER = 4
"""Times the budget that the first stage chooses where a second follows."""
PROBES = 4
"""Cells whose labelled samples a cell is shown, itself included."""


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

    second: "share" or "pooled", as above. unit: cells are of vectors of unit length, as the
    strategy's distances are. cost: time and memory, in the symbols of `QueryStrategy.cost`; c is
    the size of a cell.
    """

    second: Literal["share", "pooled"]
    unit: bool
    cost: str


_DIVIDE = "n min(n / c, 256) d for cells; memory 4 n bytes,"
TWO_STAGE: dict[str, TwoStage] = {
    "core-set": TwoStage("pooled", False, f"{_DIVIDE} 5 K d; 4 K c d, then 4 K^2 d"),
    "badge": TwoStage("share", False, f"{_DIVIDE} c (C + d); K c (C + d)"),
    "lcmd": TwoStage("pooled", False, f"{_DIVIDE} 10 K dim; 4 K c dim, then 4 K^2 dim"),
    "prob-cover": TwoStage("share", True, f"{_DIVIDE} c d; n c d"),
    "max-herding": TwoStage("share", True, f"{_DIVIDE} c d; n c d"),
    "u-herding": TwoStage("share", True, f"{_DIVIDE} c d; n c d"),
    "facility-location": TwoStage("share", True, f"{_DIVIDE} c d; n c d"),
    "typiclust": TwoStage("share", True, f"{_DIVIDE} c d; 300 K c d for k-means, then n c d"),
    "bait": TwoStage(
        "share",
        False,
        f"{_DIVIDE} 5 (C d)^2 + 2 c C^2; n / c (C d)^3 + K (c C^2 d + C^3 d^2)",
    ),
}
"""Strategy -> how it chooses in two stages. Others either score each sample by itself, or look at
more than features, posteriors and sketches."""


def select_in_cells(
    strategy: QueryStrategy,
    source: SignalSource,
    budget: int,
    rng: torch.Generator,
    *,
    labelled: Sequence[int] = (),
    cell: int = CELL,
) -> Selection:
    """Choose `budget` distinct samples of a pool in two stages; an approximation, as described.

    strategy: one of `TWO_STAGE`. source: the signals that it needs. rng: of everything random.
    labelled: positions that are labelled already, and not chosen again. cell: samples of a cell.

    Returns: the ids in order of choice; notes say how many cells there were.

    Raises:
        ConfigError: a strategy that has no two stages.
        SelectionError: a budget below 1 or above the samples left.
    """
    if strategy.name not in TWO_STAGE:
        raise ConfigError(
            f"Expected a strategy that chooses in two stages, {', '.join(TWO_STAGE)}, but got "
            f"{strategy.name}."
        )
    left = len(source) - len(set(labelled))
    if not 1 <= budget <= left:
        raise SelectionError(
            f"Expected a budget between 1 and the {left} candidates left but got {budget}."
        )
    stages = TWO_STAGE[strategy.name]
    read = _reader(strategy, source, stages.unit)
    cells = divide(read.rows, read.blocks, len(source), cell, rng)
    is_labelled = np.zeros(len(source), dtype=bool)
    is_labelled[list(labelled)] = True
    of_cell = [members[is_labelled[members]] for members in cells.members]
    free = [members[~is_labelled[members]] for members in cells.members]
    is_pooled = stages.second == "pooled" and len(cells.members) > 1
    shares = apportion(
        budget,
        np.array([len(members) for members in cells.members]),
        np.array([len(m) for m in of_cell]),
        np.array([len(m) for m in free]),
        OVER if is_pooled else 1,
    )
    picks: list[int] = []
    for number, share in enumerate(shares.tolist()):
        if share:
            near = cells.neighbours(number, PROBES)
            labelled_near = np.concatenate([of_cell[i] for i in near])
            view, positions = _view(strategy, source, free[number], labelled_near)
            picks += _choose(strategy, view, positions, share, rng)
    if is_pooled:
        view, positions = _view(strategy, source, np.array(picks), np.array(labelled, dtype=int))
        picks = _choose(strategy, view, positions, budget, rng)
    return Selection(tuple(source.ids(picks)), None, {"cells": float(len(cells.members))})


def apportion(budget: int, sizes: Counts, labelled: Counts, free: Counts, over: int = 1) -> Counts:
    """Return how many each cell gives, (cells,): in proportion to its size, labels counted.

    A cell that has more labels than its share gives none; remainders go to the largest. over: times
    the budget, and at least one of each cell that has a sample left.
    """
    shares_of_budget = np.maximum((budget + labelled.sum()) * sizes / sizes.sum() - labelled, 0.0)
    shares_of_budget = np.minimum(
        shares_of_budget * (budget / max(shares_of_budget.sum(), 1e-12)), free
    )
    if over > 1:
        most: Counts = np.minimum(np.maximum(np.ceil(over * shares_of_budget), 1), free).astype(
            np.int64
        )
        return most
    shares: Counts = np.floor(shares_of_budget).astype(np.int64)
    order = np.argsort(-(shares_of_budget - shares), kind="stable")
    while (missing := budget - int(shares.sum())) > 0:
        open_cells = order[shares[order] < free[order]][:missing]
        shares[open_cells] += 1
    return shares


@dataclass(frozen=True)
class _Vectors:
    """The vectors whose distances divide the pool: the widest signal of a strategy."""

    source: SignalSource
    need: Need
    unit: bool

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


def _view(
    strategy: QueryStrategy, source: SignalSource, candidates: Counts, labelled: Counts
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
    )
    return view, dict(zip(ids, candidates.tolist(), strict=True))


def _choose(
    strategy: QueryStrategy,
    view: PoolView,
    positions: dict[str, int],
    count: int,
    rng: torch.Generator,
) -> list[int]:
    if count == len(view):
        return list(positions.values())
    return [positions[id_] for id_ in strategy.select(view, count, rng).ids]
