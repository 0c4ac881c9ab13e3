"""How many samples each cell of a pool gives, and in which order those of all cells are taken.

Of strategies that draw, or divide, each cell gives its share (`apportion`), in proportion to its
samples or to what the strategy weighs these by. Greedy strategies say
what every choice had that made it the next, its gain; taken by largest gain over all cells
(`take_by_gain`), the choices are those of the greedy algorithm over the whole pool, if no sample
counts beyond its own cell.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Weights = NDArray[np.float64]
GreedyRun = tuple[list[int], list[float]]
"""Positions in the order in which a greedy strategy takes them, and the gain of each."""

AHEAD = 1.5
"""Times its share that each cell chooses at first; those that are used up choose twice as many."""


def apportion(
    budget: int, sizes: Counts | Weights, labelled: Counts, free: Counts, over: float = 1
) -> Counts:
    """Return how many each cell gives, (cells,): in proportion to its size, labels counted.

    A cell that has more labels than its share gives none; remainders go to the largest. sizes: how
    many samples, or any weight. over: times the budget, and at least one of each cell that has a
    sample left.
    """
    total = max(float(sizes.sum()), 1e-300)
    quotas = np.maximum((budget + labelled.sum()) * (sizes / total) - labelled, 0.0)
    quotas = _within(budget, quotas, free)
    if over > 1:
        most: Counts = np.minimum(np.maximum(np.ceil(over * quotas), 1), free).astype(np.int64)
        return most
    shares: Counts = np.floor(quotas).astype(np.int64)
    order = np.argsort(-(quotas - shares), kind="stable")
    while (missing := budget - int(shares.sum())) > 0:
        open_cells = order[shares[order] < free[order]][:missing]
        shares[open_cells] += 1
    return shares


def _within(budget: int, quotas: Weights, free: Counts) -> Weights:
    """Scale quotas to a sum of `budget` and none above what is free: what a cell cannot give, the
    others do in proportion."""
    is_full = free == 0
    while True:
        rest = budget - int(free[is_full].sum())
        open_quotas = np.where(is_full, 0.0, quotas)
        if not open_quotas.any():
            open_quotas = np.where(is_full, 0.0, free)
        shares = np.where(is_full, free, open_quotas * (rest / max(open_quotas.sum(), 1e-300)))
        if not (shares > free).any():
            return shares
        is_full |= shares > free


def take_by_gain(
    budget: int, sizes: Counts, counts: Counts, free: Counts, run: Callable[[int, int], GreedyRun]
) -> list[int]:
    """Return `budget` positions: each time that of the cell whose next choice gains most.

    sizes: samples of each cell; of equal gains, such as those before there is any label, the larger
    cell goes first. counts: how many each cell chooses at first. free: how many it may choose. run:
    (cell, how many) -> its choices, of which a longer run begins with the same.
    """
    runs = {cell: run(cell, int(count)) for cell, count in enumerate(counts) if count}
    place = dict.fromkeys(runs, 0)
    heap: list[tuple[float, int, int]] = []

    def offer(cell: int) -> None:
        heapq.heappush(heap, (-runs[cell][1][place[cell]], -int(sizes[cell]), cell))

    for cell in runs:
        offer(cell)
    picks: list[int] = []
    while len(picks) < budget:
        _, _, cell = heapq.heappop(heap)
        positions, _ = runs[cell]
        picks.append(positions[place[cell]])
        place[cell] += 1
        if place[cell] == len(positions) < free[cell]:
            runs[cell] = _go_on(runs[cell], run(cell, min(2 * len(positions), int(free[cell]))))
        if place[cell] < len(runs[cell][0]):
            offer(cell)
    return picks


def _go_on(run: GreedyRun, longer: GreedyRun) -> GreedyRun:
    """The longer run with its beginning as it was: rounding may have told equal gains apart."""
    positions, gains = run
    first_run = set(positions)
    rest = [(p, g) for p, g in zip(*longer, strict=True) if p not in first_run]
    return positions + [p for p, _ in rest], gains + [g for _, g in rest]
