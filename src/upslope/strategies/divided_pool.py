"""A pool that is divided into cells, and what a strategy is shown of one: for `two_stage`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.pool import Need, PoolView
from upslope.strategies.base import POSTERIORS, QueryStrategy
from upslope.strategies.cell_choices import Counts
from upslope.strategies.cell_search import PROBES
from upslope.strategies.cells import Cells, Positions, divide
from upslope.strategies.distances import normalise


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
class Vectors:
    """The vectors of a pool, by position, whose distances divide it.

    source: the signals of the pool. need: the signal. unit: rows come at unit length.
    """

    source: SignalSource
    need: Need
    unit: bool

    def raw(self, positions: Sequence[int]) -> Tensor:
        """Return the rows at these positions as the source has them, (n, d)."""
        return self.source.rows(self.need, positions).flatten(start_dim=1)

    def rows(self, positions: Sequence[int]) -> Tensor:
        """Return the rows at these positions in float32, (n, d)."""
        return self._form(self.source.rows(self.need, positions))

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (position of the first row, rows as `rows` has them), over all of the pool."""
        return ((start, self._form(part)) for start, part in self.source.blocks(self.need))

    def _form(self, x: Tensor) -> Tensor:
        x = x.flatten(start_dim=1).float()
        return normalise(x) if self.unit else x


def vectors_of(strategy: QueryStrategy, source: SignalSource, *, unit: bool) -> Vectors:
    """Return the vectors whose distances divide a pool: the widest signal that a strategy needs,
    of those that are no posteriors.

    strategy: that chooses. source: the signals of the pool. unit: bring them to unit length.
    """
    needs = [plain(need) for need in strategy.needs if need.name not in POSTERIORS]
    widest = max(needs, key=lambda need: math.prod(source.rows(need, [0]).shape))
    return Vectors(source, widest, unit)


@dataclass(frozen=True)
class DividedPool:
    """A pool in cells, with the samples of each that are free and those whose labels count.

    source: its signals. vectors: by which it was divided. cells: of it. labels_at: the class at
    each position that is labelled, -1 of those passed over; None where there are no classes. free,
    labelled_of: positions of the candidates, and of the labelled samples with a class, of each
    cell.
    """

    source: SignalSource
    vectors: Vectors
    cells: Cells
    labels_at: Tensor | None
    free: tuple[Positions, ...]
    labelled_of: tuple[Positions, ...]

    @property
    def counts(self) -> tuple[Counts, Counts, Counts]:
        """Return the samples, the labels and the candidates of each cell, (cells,) each."""
        sizes, labels, free = (
            np.array([len(members) for members in group])
            for group in (self.cells.members, self.labelled_of, self.free)
        )
        return sizes, labels, free

    def view(self, strategy: QueryStrategy, number: int) -> tuple[PoolView, dict[str, int]]:
        """Return the candidates of a cell with the labels of it and of its nearest neighbours.

        strategy: that chooses. number: of the cell. Returns: as `view_at`.
        """
        near = [self.labelled_of[i] for i in self.cells.neighbours(number, PROBES)]
        return view_at(
            strategy, self.source, self.free[number], np.concatenate(near), self.labels_at
        )


def divide_pool(
    source: SignalSource,
    vectors: Vectors,
    size: int,
    rng: torch.Generator,
    labelled: Sequence[int],
    labels: Tensor | None,
) -> DividedPool:
    """Return a pool in cells of about `size` samples.

    source: its signals. vectors: of it. rng: draws the sample that centroids are learnt on.
    labelled: positions. labels: the class of each; -1 of those that were passed over.
    """
    cells = divide(vectors.rows, vectors.blocks, len(source), size, rng)
    labels_at = _by_position(labels, labelled, len(source))
    is_free, has_label = by_state(len(source), labelled, labels)
    return DividedPool(
        source,
        vectors,
        cells,
        labels_at,
        tuple(members[is_free[members]] for members in cells.members),
        tuple(members[has_label[members]] for members in cells.members),
    )


def by_state(
    count: int, labelled: Sequence[int], labels: Tensor | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which samples of a pool are candidates, and which have a label: (count,) each.

    What was passed over is neither. labelled, labels: as of `divide_pool`.
    """
    is_free, has_label = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    places = np.array(labelled, dtype=np.int64)
    is_free[places] = False
    has_label[places if labels is None else places[(labels >= 0).numpy()]] = True
    return is_free, has_label


def _by_position(labels: Tensor | None, labelled: Sequence[int], count: int) -> Tensor | None:
    """The label at each position that has one."""
    if labels is None:
        return None
    at = torch.zeros(count, dtype=torch.int32)
    at[list(labelled)] = labels.int()
    return at


def plain(need: Need) -> Need:
    """Return a need by its name and options alone, as a store of signals has it."""
    return Need(need.name, need.options)


def view_at(
    strategy: QueryStrategy,
    source: SignalSource,
    candidates: Positions,
    labelled: Positions,
    labels_at: Tensor | None,
) -> tuple[PoolView, dict[str, int]]:
    """Return the samples at some positions as a pool, and id -> position.

    strategy: that chooses. source: the signals of the pool. candidates, labelled: positions.
    labels_at: the class at each position that is labelled; None where there are no classes.
    """
    ids = source.ids(candidates.tolist())
    view = PoolView(
        ids,
        {n: source.rows(plain(n), candidates.tolist()).float() for n in strategy.needs},
        source.ids(labelled.tolist()),
        {n: source.rows(plain(n), labelled.tolist()).float() for n in strategy.needs if n.labelled},
        None if labels_at is None else labels_at[torch.from_numpy(labelled)].long(),
    )
    return view, dict(zip(ids, candidates.tolist(), strict=True))
