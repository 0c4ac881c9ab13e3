"""BAIT among 10^6 samples and more: one design for all, its candidates block by block.

F and M are those of the whole pool, exactly: M has the information of every sample labelled or
chosen so far, wherever it lies (see `fisher` for the symbols). Candidates are divided into blocks
at random, so that each block is a small copy of the pool. Three things are approximated:

    forward    2K samples are added block by block, from each block its share, and no block is
               looked at again
    backward   then K of these are taken away, as in the exact form
    both       several samples are added, or taken away, before gains are computed anew: one for
               every `ONE_IN` that M holds, `TOGETHER` at most, by which M hardly changes

Gains are taken to fall as samples are added, and losses to rise as samples are taken away. So
those computed earlier are bounds, and few are computed anew. That holds for most samples only: the
exact form proves its bounds (`fisher_bounds`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from upslope.strategies.cells import Positions
from upslope.strategies.fisher import Fisher
from upslope.strategies.information import information

ONE_IN = 64
TOGETHER = 16
AHEAD = 4
"""Values computed anew at first, for each that is asked for; twice as many each time that was not
enough."""
AFTER_FOLDING = 2048
"""Samples of the least losses whose Q and R are computed anew together, after steps are folded."""
LEAST_SHARE = 8
"""Samples that a block gives at least: small budgets have fewer and larger blocks, of at most"""
LARGEST = 8  # times the size asked for

Reader = Callable[[Positions], tuple[Tensor, Tensor]]


class FallingValues:
    """The largest of values that fall, of which few are computed anew.

    values: (n,), now. compute: positions (k,) -> their values now, (k,).
    """

    def __init__(self, values: Tensor, compute: Callable[[Tensor], Tensor]) -> None:
        self.values, self._compute = values, compute
        self._is_now = torch.ones(len(values), dtype=torch.bool)

    def take(self, count: int) -> list[int]:
        """Return the positions of the `count` largest values, which are not returned again."""
        ahead = AHEAD * count
        while not bool(self._is_now[top := self.values.topk(count).indices].all()):
            stale_values = self.values.masked_fill(self._is_now, -torch.inf)
            stale = stale_values.topk(min(ahead, len(stale_values))).indices
            stale = stale[~self._is_now[stale]]
            self.values[stale] = self._compute(stale)
            self._is_now[stale] = True
            ahead *= 2
        self.values[top] = -torch.inf
        self._is_now = self.values == -torch.inf  # all others may have fallen
        positions: list[int] = top.tolist()
        return positions

    def largest(self, count: int) -> Tensor:
        """Return the positions of the `count` largest values as far as they are known."""
        return self.values.topk(min(count, len(self.values))).indices


def blocks_of(
    positions: Positions, size: int, budget: int, rng: torch.Generator
) -> list[Positions]:
    """Return blocks of about `size` positions, at random; each block ascending.

    positions: (n,). size: of a block; larger ones where the budget is small. rng: draws.
    """
    count = -(-len(positions) // size)
    count = max(-(-count // LARGEST), min(count, 2 * budget // LEAST_SHARE), 1)
    order = torch.randperm(len(positions), generator=rng).numpy()
    return [np.sort(positions[part]) for part in np.array_split(order, count)]


def choose_in_blocks(
    read: Reader,
    blocks: Sequence[Positions],
    labelled: Sequence[Positions],
    budget: int,
    ridge: float,
    check: Callable[[float], None],
) -> tuple[list[int], float]:
    """Return `budget` positions in the order in which they were added, and tr(M^-1 F).

    read: positions -> posteriors (n, C) and features (n, d), in double precision. blocks: of
    candidates. labelled: blocks of those that are labelled. ridge: lambda.
    check: called with the largest tr Q of the candidates of each block, by what M holds by then.
    """
    pool = sum_information(read, blocks)
    of_labelled = sum_information(read, labelled) if labelled else torch.zeros_like(pool)
    count = sum(map(len, labelled))
    fisher: Fisher | None = None
    positions: list[int] = []
    so_far, total = 0, sum(map(len, blocks))
    for block in blocks:
        so_far += len(block)
        share = min(2 * budget * so_far // total, so_far) - len(positions)
        if not share:
            continue
        p, h = read(block)
        if fisher is None:
            fisher = Fisher(p, h, pool, of_labelled, ridge)
            del of_labelled  # M^-1 holds it
        else:
            fisher.follow(p, h)
        check(fisher.most_new())
        rows = _add(fisher, share, count + len(positions))
        positions += block[rows].tolist()
    assert fisher is not None
    fisher.follow(*read(np.array(positions)))
    rows = _remove(fisher, len(positions) - budget, count + len(positions))
    rest: list[int] = np.delete(np.array(positions), rows).tolist()
    return rest, fisher.trace()


def sum_information(read: Reader, blocks: Sequence[Positions]) -> Tensor:
    """Return the information of all samples, the square matrix of (C - 1) d rows.

    read: as for `choose_in_blocks`. blocks: of positions, one at least.
    """
    total = information(*read(blocks[0]))
    for block in blocks[1:]:
        total += information(*read(block))
    return total


def _add(fisher: Fisher, count: int, samples: int) -> list[int]:
    """Add the `count` candidates of largest gain to M, which has so many `samples`."""
    gains = FallingValues(fisher.gains(), fisher.gains)
    rows: list[int] = []
    while len(rows) < count:
        together = gains.take(min(_together(samples + len(rows)), count - len(rows)))
        _make_room(fisher, len(together), gains)
        for place, row in enumerate(together, 1):
            fisher.add(row, together[place:])
        rows += together
    return rows


def _remove(fisher: Fisher, count: int, samples: int) -> list[int]:
    """Take the `count` candidates of least loss out of M, which holds all of them."""
    every = torch.arange(len(fisher.h))
    losses = FallingValues(
        -fisher.losses(every.tolist()), lambda rows: -fisher.losses(rows.tolist())
    )
    rows: list[int] = []
    while len(rows) < count:
        together = losses.take(min(_together(samples - len(rows)), count - len(rows)))
        _make_room(fisher, len(together), losses)
        for place, row in enumerate(together, 1):
            fisher.remove(row, together[place:])
        rows += together
    return rows


def _make_room(fisher: Fisher, steps: int, values: FallingValues) -> None:
    """Fold the steps that are held, if so many more would be too many."""
    if fisher.steps + steps > fisher.most_steps:
        fisher.fold()
        # Together, as each time the matrices are read.
        fisher.settle(values.largest(AFTER_FOLDING))


def _together(samples: int) -> int:
    return max(1, min(TOGETHER, samples // ONE_IN))
