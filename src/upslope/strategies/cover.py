"""How much of a pool is covered, and what each candidate would add to it: the state of `coverage`.

A candidate x adds to the coverage of sample i only if it lies nearer to i than every label does,

    [ k(i, x) - max_l k(i, l) ]_+ > 0   only if   d(i, x)^2 < reach_i.

With m labels that is about one candidate in m, so that soon few pairs (x, i) are left. While they
are too many, `DenseCover` computes all similarities of a candidate anew, n d for each gain; as soon
as they are few, and at most `PAIRS` in any pool, `SparseCover` holds their similarities, and no
distance is computed any more. Of pools of at most `WHOLE` samples with more pairs than that, those
of all are held (`cover_matrix`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from upslope.strategies.cover_matrix import MatrixCover
from upslope.strategies.distances import (
    BLOCK,
    nearest_squared,
    squared_distances,
    symmetric_tiles,
)
from upslope.strategies.greedy import LazyGreedy
from upslope.strategies.near_pairs import list_places

PAIRS = 2**24
"""Most pairs held: 12 bytes each, and some 40 while they are put in order, 0.7 GB in all."""
FEW = 2**20
"""Pairs that take less time to put in order than a few gains computed anew."""
SHARE = 1 / 32
"""Most of all n^2 pairs that are held, beyond `FEW`: with more, computing gains anew is faster."""
WHOLE = 5792
"""Most candidates of which all pairs are held, in 128 MB of single precision: as most cells of
`two_stage` have. In double precision fewer have as much."""
PROBES = 256
"""Samples whose pairs are counted to estimate the number of all."""
FINE = 1e-3
"""Squared distance between vectors of unit length below which rounding in single precision, of a
millionth, counts: where such ones decide, all is computed in double precision."""
ROUNDING = 1e-5
"""By how much, relative to it, two sums of the same single-precision gain may differ."""


def most_pairs(total: int) -> int:
    """Return how many pairs are held at most, of so many in all."""
    return min(PAIRS, max(FEW, int(SHARE * total)))


class Similarity(Protocol):
    """k >= 0, which falls with the distance."""

    @property
    def scale(self) -> float:
        """Return the distance at which k has fallen by much."""
        ...

    def __call__(self, squares: Tensor) -> Tensor:
        """Return k of squared distances, elementwise; it may overwrite them."""
        ...

    def reach(self, nearest: Tensor) -> Tensor:
        """Return the squared distances below which k exceeds its value at `nearest`.

        nearest: (n,) squared distances to the nearest label, infinite without one.
        """
        ...


@dataclass
class DenseCover:
    """Coverage with nothing held but the vectors.

    x: (n, d) candidates; nearest: (n,) squared distances to the nearest label; w: (n,) weights.
    """

    x: Tensor
    nearest: Tensor
    w: Tensor
    similarity: Similarity

    def __post_init__(self) -> None:
        self.squares = self.x.square().sum(dim=1)
        self.covered = self.similarity(self.nearest.clone())

    def bounds(self) -> Tensor:
        """Return the gain of every candidate, up to `ROUNDING`: (n,), in double precision."""
        gains = torch.zeros(len(self.x), dtype=torch.float64)
        for rows, columns, squares in symmetric_tiles(self.x):
            k = self.similarity(squares)
            new_gains = (k - self.covered[columns]).clamp_(min=0)
            gains[rows] += new_gains @ self.w[columns]
            if rows != columns:
                new_gains = k.sub_(self.covered[rows, None]).clamp_(min=0)
                gains[columns] += self.w[rows] @ new_gains
        return gains

    def gains_of(self, rows: Tensor) -> Tensor:
        """Return the gains of some candidates now: (len(rows),)."""
        squares = squared_distances(self.x[rows], self.x, self.squares)
        return self.similarity(squares).sub_(self.covered).clamp_(min=0) @ self.w

    def take(self, row: int) -> None:
        """Count a candidate as labelled."""
        squares = squared_distances(self.x[row : row + 1], self.x, self.squares)[0]
        torch.minimum(self.nearest, squares, out=self.nearest)
        torch.maximum(self.covered, self.similarity(squares), out=self.covered)


class SparseCover:
    """Coverage with the similarity of every pair (candidate, sample) that still matters.

    The pairs of one candidate lie side by side, their samples ascending.
    """

    def __init__(
        self, dense: DenseCover, counts: Tensor, samples: Tensor, similarities: Tensor
    ) -> None:
        self.w, self.covered = dense.w, dense.covered
        self.counts, self.samples, self.similarities = counts, samples, similarities
        self.starts = counts.cumsum(dim=0) - counts

    @classmethod
    def of(cls, dense: DenseCover) -> SparseCover | None:
        """Return the pairs of this state; None where there are too many to hold."""
        reach = dense.similarity.reach(dense.nearest).masked_fill(dense.w == 0, 0.0)
        n = len(dense.x)
        most = most_pairs(n**2)
        probes = torch.arange(0, n, max(1, n // PROBES))
        squares = squared_distances(dense.x[probes], dense.x, dense.squares)
        if int((squares < reach[probes, None]).sum()) * (n / len(probes)) > most:
            return None
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        total = 0
        near = torch.empty(0, dtype=torch.bool)  # for all tiles, as they have one buffer too
        for rows, columns, squares in symmetric_tiles(dense.x):
            torch.lt(squares, reach[columns], out=near.resize_(squares.shape))
            i, j = near.nonzero().unbind(dim=1)
            parts.append(_pairs(i + rows.start, j + columns.start, squares[i, j]))
            total += len(i)
            if rows != columns:
                torch.lt(squares, reach[rows, None], out=near)
                i, j = near.nonzero().unbind(dim=1)
                parts.append(_pairs(j + columns.start, i + rows.start, squares[i, j]))
                total += len(i)
            if total > most:
                return None
        candidates, samples, squares = (torch.cat(part) for part in zip(*parts, strict=True))
        parts.clear()
        # A stable sort: the tiles give the samples of each candidate in ascending order.
        order = candidates.argsort(stable=True)
        counts = torch.bincount(candidates, minlength=n)
        return cls(dense, counts, samples[order], dense.similarity(squares[order]))

    def gains_of(self, rows: Tensor) -> Tensor:
        """Return the gains of some candidates now: (len(rows),), in double precision."""
        counts = self.counts[rows]
        owner, places = list_places(self.starts[rows], counts)
        samples = self.samples[places]
        new_gains = (self.similarities[places] - self.covered[samples]).clamp_(min=0)
        gains = torch.zeros(len(rows), dtype=torch.float64)
        return gains.index_add_(0, owner, new_gains.mul_(self.w[samples]).double())

    def gains(self) -> Tensor:
        """Return the gain of every candidate: (n,), in double precision."""
        # As many candidates at a time as a block of distances has rows.
        size = max(1, BLOCK // max(1, int(self.counts.max())))
        rows = torch.split(torch.arange(len(self.w)), size)
        return torch.cat([self.gains_of(part) for part in rows])

    def take(self, row: int) -> None:
        """Count a candidate as labelled."""
        pairs = slice(int(self.starts[row]), int(self.starts[row] + self.counts[row]))
        samples = self.samples[pairs]
        self.covered[samples] = torch.maximum(self.covered[samples], self.similarities[pairs])


def _pairs(candidates: Tensor, samples: Tensor, near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return candidates.int(), samples.int(), near


def _is_fine(x: Tensor, nearest: Tensor, similarity: Similarity) -> bool:
    """Tell whether distances decide that single precision hardly tells from 0: of a narrow
    similarity, of candidates that are all near a label, or, without labels, near each other."""
    if similarity.scale**2 < FINE:
        return True
    if bool(nearest.isinf().any()):
        nearest = squared_distances(x[:1], x)
    return bool(nearest.max() < FINE)


def cover(
    x: Tensor, y: Tensor, w: Tensor, similarity: Similarity, budget: int
) -> tuple[list[int], list[float], Tensor, float]:
    """Return `budget` rows of x, each of largest gain, and that gain of each; the gains of all at
    first; the coverage at last.

    x: (n, d) candidates; y: (m, d) labelled, of unit length; w: (n,) weights of the candidates.
    """
    nearest = nearest_squared(x, y)
    if x.dtype == torch.float32 and _is_fine(x, nearest, similarity):
        x, y, w = x.double(), y.double(), w.double()
        nearest = nearest_squared(x, y)
    dense = DenseCover(x, nearest, w, similarity)
    most = max(1, BLOCK // len(x))
    positions: list[int] = []
    gains_taken: list[float] = []
    scores: Tensor | None = None
    sparse: SparseCover | MatrixCover | None = SparseCover.of(dense)
    if sparse is None and x.element_size() * len(x) ** 2 <= 4 * WHOLE**2:
        sparse = MatrixCover(x, dense.covered, w, similarity)
    if sparse is None:
        scores = dense.bounds()
        search = LazyGreedy(scores * (1 + ROUNDING), dense.gains_of, dense.take, most, exact=False)
        while sparse is None and len(positions) < budget:
            # Twice as many labels leave about half as many pairs.
            positions += search.search(min(max(1, len(positions)), budget - len(positions)))
            sparse = SparseCover.of(dense) if len(positions) < budget else None
        gains_taken += search.taken_gains
    if sparse is not None:
        gains = sparse.gains()
        scores = gains.clone() if scores is None else scores
        gains[positions] = -torch.inf
        search = LazyGreedy(gains, sparse.gains_of, sparse.take, most=len(x))
        positions += search.search(budget - len(positions))
        gains_taken += search.taken_gains
    assert scores is not None
    return positions, gains_taken, scores.float(), float(dense.covered @ w / w.sum())
