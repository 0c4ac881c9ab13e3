"""Cells of similar rows: k-means on a sample, then every row to its nearest centroid, by blocks.

The inverted file of a pool: which rows lie in which cell. Memory is four bytes per row, the sample
and one block. Cells that come out larger than twice the size wanted are divided in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 64
"""Rows per cell on which centroids are learnt."""
ROUNDS = 10
"""Rounds of k-means (Lloyd): later ones move few rows."""
AT_ONCE = 256
"""Cells at most that one k-means makes: of more, cells are divided again, in n log n time."""
_ROWS = 4096  # rows whose distances are computed at once

Positions = NDArray[np.int64]


class RowReader(Protocol):
    """Rows of a pool by position."""

    def __call__(self, positions: Sequence[int], /) -> Tensor:
        """Return (n, d) float32 rows at these positions."""
        ...


@dataclass(frozen=True)
class Cells:
    """The rows of each cell, ascending, and the mean of each.

    members: positions of the rows, one array per cell. means: (cells, d).
    """

    members: tuple[Positions, ...]
    means: Tensor

    def neighbours(self, cell: int, count: int) -> list[int]:
        """Return the cells whose means lie nearest to that of a cell, itself first.

        cell: its number. count: how many, itself included.
        """
        others = [c for c in nearest_cells(self.means, self.means[cell], count) if c != cell]
        return [cell, *others][:count]


def nearest_cells(means: Tensor, x: Tensor, count: int) -> list[int]:
    """Return the numbers of the `count` cells whose means lie nearest to a row, nearest first.

    means: (cells, d). x: (d,).
    """
    square_sums = (means - x).square().sum(dim=1)
    nearest: list[int] = square_sums.topk(
        min(count, len(square_sums)), largest=False
    ).indices.tolist()
    return nearest


def divide(
    rows: RowReader,
    blocks: Callable[[], Iterable[tuple[int, Tensor]]],
    length: int,
    size: int,
    rng: torch.Generator,
) -> Cells:
    """Return cells of about `size` rows, none of more than twice as many.

    rows: reads rows by position. blocks: begins a pass over all rows: (position of the first,
    (n, d) rows). length: of the pool. rng: draws the sample.
    """
    count = min(AT_ONCE, -(-length // size))
    if length <= 2 * size:
        everything = [np.arange(length)]
    else:
        sample = torch.randperm(length, generator=rng)[: SAMPLE * count].sort().values.tolist()
        means = k_means(rows(sample), count, rng)
        cell = np.empty(length, dtype=np.int32)
        for start, block in blocks():
            cell[start : start + len(block)] = nearest(block, means).numpy()
        everything = _positions_by_cell(cell, count)
    members: list[Positions] = []
    for group in everything:
        members += _divide(rows, group, size, rng)
    centres = torch.stack([rows(m[:SAMPLE].tolist()).mean(dim=0) for m in members])
    return Cells(tuple(members), centres)


def k_means(x: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return the centroids of k-means (Lloyd) from rows drawn at random.

    x: (n, d). count: of centroids, at most n. rng: draws the first. Returns (count, d).
    """
    offset = x.mean(dim=0)  # which would cost sums their digits
    x = x - offset
    means = x[torch.randperm(len(x), generator=rng)[:count]].clone()
    for _ in range(ROUNDS):
        cell = nearest(x, means)
        sums = torch.zeros_like(means).index_add_(0, cell, x)
        sizes = torch.bincount(cell, minlength=len(means))
        is_used = sizes > 0
        means[is_used] = sums[is_used] / sizes[is_used, None]
    return means + offset


def nearest(x: Tensor, means: Tensor) -> Tensor:
    """Return the number of the nearest mean of each row, (n,). x: (n, d); means: (k, d)."""
    offset = means.mean(dim=0)  # which would cost the products their digits
    means = means - offset
    squares = means.square().sum(dim=1)
    parts = [
        torch.addmm(squares, part - offset, means.T, alpha=-2).argmin(dim=1)
        for part in torch.split(x, _ROWS)
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _positions_by_cell(cell: NDArray[np.int32], count: int) -> list[Positions]:
    """Positions by cell, without the cells that are empty."""
    order = np.argsort(cell, kind="stable")
    ends = np.cumsum(np.bincount(cell, minlength=count))[:-1]
    return [group for group in np.split(order, ends) if len(group)]


def _divide(
    rows: RowReader, members: Positions, size: int, rng: torch.Generator
) -> list[Positions]:
    if len(members) <= 2 * size:
        return [members]
    count = -(-len(members) // size)
    x = rows(members.tolist())
    sample = torch.randperm(len(x), generator=rng)[: SAMPLE * min(count, AT_ONCE)]
    groups = _positions_by_cell(
        nearest(x, k_means(x[sample], min(count, AT_ONCE), rng)).numpy().astype(np.int32), count
    )
    if max(map(len, groups)) > 0.9 * len(members):  # rows that are alike: any division will do
        return [np.sort(part) for part in np.array_split(members, count)]
    parts: list[Positions] = []
    for group in groups:
        parts += _divide(rows, members[group], size, rng)
    return parts
