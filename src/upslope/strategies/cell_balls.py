"""DCoM over all cells of a pool at once (see `dcom` for the symbols, and `two_stage`).

The rule is that of the exact form: one competence, one mean radius and one scale of uncertainty and
density for the whole pool, and each choice is that of the largest mixture in all cells. Two things
are taken from within cells alone:

    balls     of a labelled sample count what lies in the `PROBES` cells that are shown it: those
              to which its own cell is one of the nearest
    density   of a sample counts what is not covered in its own cell, and a choice covers there

Kept are 14 bytes per sample. The rows of one cell are read at a time, from a copy in the order of
the cells (`cell_search.copied_rows`), and distances computed again where a choice covers samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upslope.posterior import closeness
from upslope.strategies.balls import PureRadii, is_near
from upslope.strategies.cell_search import PROBES, copied_rows
from upslope.strategies.cells import Cells, Positions, RowReader
from upslope.strategies.dcom import (
    RESOLUTION,
    DCoM,
    competence,
    one_label_each,
    purity,
    scale,
    share_of,
)
from upslope.strategies.distances import BLOCK, normalise, slices
from upslope.strategies.near_pairs import Pairs, near_pairs

ROUNDING = 1e-12
"""More than the rounding of a mixture, which is at most 1, in double precision."""


@dataclass
class BallSearch:
    """The candidates of all cells, in the order of the cells, and the labelled samples likewise.

    rows: (n, d) features as the source has them, on the disk. starts: (cells + 1,) where each cell
    begins. unsure: (n,) uncertainties, not scaled. classes: (n,) predicted. labelled: (m, d), rows
    of unit length; labelled_starts: (cells + 1,); of_labelled: (m,), predicted; labels: (m,).
    visible: for each cell, the labelled samples that it is shown.
    """

    rows: Tensor
    starts: list[int]
    unsure: Tensor
    classes: Tensor
    labelled: Tensor
    labelled_starts: list[int]
    of_labelled: Tensor
    labels: Tensor
    visible: list[Tensor]

    def choose(self, strategy: DCoM, budget: int) -> tuple[list[int], dict[str, float]]:
        """Return `budget` candidates in the order of choice, and the notes of the exact form."""
        m, n = len(self.labelled), len(self.rows)
        self.is_covered = torch.zeros(n, dtype=torch.bool)
        self.radius = strategy.delta
        if m:
            self._cover_by_balls(strategy.delta)
        share = share_of(self.is_covered, m)
        self.weight = competence(share, strategy.slope, strategy.centre)
        self.unsure = scale(self.unsure)
        self.is_free = torch.ones(n, dtype=torch.bool)
        self.counts = torch.zeros(n)
        """Samples of its cell that are not covered yet within the radius of each, (n,)."""
        for part in self._cells():
            x = self._read(part)
            self._add_near(part, x, (~self.is_covered[part]).nonzero().flatten(), 1)
        notes = {"coverage": share, "competence": self.weight, "radius": self.radius}
        return self._take_largest(budget), notes

    def _cover_by_balls(self, delta: float) -> None:
        """Find the mean radius, and which candidates a ball covers."""
        pure = PureRadii(self.labels, delta, RESOLUTION)
        near = torch.zeros(len(self.rows), dtype=torch.bool)
        for part, pairs, classes in self._pairs(delta):
            right = pairs.right.long()
            pure.count(pairs.left.long(), classes[right], pairs.squares)
            near[part.start + right[right < part.stop - part.start]] = True
        radii = pure.radii(purity(share_of(near, len(self.labelled))))
        self.radius = float(radii.mean())
        for part, pairs, _ in self._pairs(float(radii.max())):
            right = pairs.right.long()
            is_inside = pairs.squares < radii.square()[pairs.left.long()]
            is_inside &= right < part.stop - part.start
            self.is_covered[part.start + right[is_inside]] = True

    def _pairs(self, radius: float) -> Iterator[tuple[slice, Pairs, Tensor]]:
        """Yield (a cell, labelled samples that it is shown and its samples near them, the classes
        predicted for these): candidates by their place in the cell, the cell's labels behind."""
        for cell, part in enumerate(self._cells()):
            home = slice(self.labelled_starts[cell], self.labelled_starts[cell + 1])
            visible = self.visible[cell]
            if not len(visible):
                continue
            x = torch.cat([self._read(part), self.labelled[home]])
            classes = torch.cat([self.classes[part], self.of_labelled[home]])
            for pairs in near_pairs(self.labelled[visible], x, radius):
                yield part, Pairs(visible[pairs.left.long()], pairs.right, pairs.squares), classes

    def _take_largest(self, budget: int) -> list[int]:
        """Return `budget` candidates, each of the largest mixture w u + b (count - low).

        b and low are of the whole pool. Of a cell is known which candidate was its best under
        former ones, b' and low', and bounds on its counts: now its best is at most

            mixture + (b - b') (most of its counts if b > b', else least) - b low + b' low'.
        """
        cells = len(self.starts) - 1
        least, most = np.zeros(cells), np.zeros(cells)
        best = np.full(cells, -1)
        top = np.full(cells, np.inf)
        slopes, lows = np.zeros(cells), np.zeros(cells)
        nonempty = [cell for cell, part in enumerate(self._cells()) if part.stop > part.start]
        for cell in nonempty:
            least[cell], most[cell] = self._extremes(cell)
        positions: list[int] = []
        while len(positions) < budget:
            low, high = float(least[nonempty].min()), float(most[nonempty].max())
            b = (1 - self.weight) / (high - low) if high > low else 0.0
            rise = (b - slopes) * np.where(b > slopes, most, least) - b * low + slopes * lows
            is_now = (slopes == b) & (lows == low) & (best >= 0)
            bounds = np.where(is_now, top, top + rise + ROUNDING)[nonempty]
            cell = nonempty[int(bounds.argmax())]
            if not is_now[cell]:
                top[cell], best[cell] = self._best(cell, low, high)
                slopes[cell], lows[cell] = b, low
                continue
            position = int(best[cell])
            positions.append(position)
            self._take(cell, position)
            least[cell], most[cell] = self._extremes(cell)
            best[cell], top[cell] = -1, np.inf
        return positions

    def _extremes(self, cell: int) -> tuple[float, float]:
        low, high = self.counts[self._cell(cell)].aminmax()
        return float(low), float(high)

    def _best(self, cell: int, low: float, high: float) -> tuple[float, int]:
        """The largest mixture of a cell's free candidates, and whose it is."""
        part = self._cell(cell)
        density = self.counts[part].double() - low
        density = density / (high - low) if high > low else torch.zeros_like(density)
        mixture = self.weight * self.unsure[part] + (1 - self.weight) * density
        value, place = mixture.masked_fill_(~self.is_free[part], -torch.inf).max(dim=0)
        return float(value), part.start + int(place)

    def _take(self, cell: int, position: int) -> None:
        """Choose a candidate: what lies within the radius of it in its cell is covered."""
        part = self._cell(cell)
        self.is_free[position] = False
        if not bool((~self.is_covered[part]).any()):
            return
        x = self._read(part)
        squares = x.square().sum(dim=1)
        near = is_near(x, squares, torch.tensor([position - part.start]), self.radius)[:, 0]
        new = (near & ~self.is_covered[part]).nonzero().flatten()
        self.is_covered[part.start + new] = True
        self._add_near(part, x, new, -1)

    def _add_near(self, part: slice, x: Tensor, rows: Tensor, sign: int) -> None:
        """Count some rows of a cell, or no longer, for all that lie within the radius of them."""
        squares = x.square().sum(dim=1)
        for few in slices(len(rows), max(1, BLOCK // max(1, len(x)))):
            near = is_near(x, squares, rows[few], self.radius)
            self.counts[part] += sign * near.sum(dim=1)

    def _cell(self, cell: int) -> slice:
        return slice(self.starts[cell], self.starts[cell + 1])

    def _cells(self) -> Iterator[slice]:
        return (self._cell(cell) for cell in range(len(self.starts) - 1))

    def _read(self, part: slice) -> Tensor:
        return normalise(self.rows[part])


@contextmanager
def searching_balls(
    features: RowReader,
    posteriors: RowReader,
    cells: Cells,
    free: Sequence[Positions],
    of_cell: Sequence[Positions],
    labels_at: Tensor | None,
) -> Iterator[tuple[BallSearch, Positions]]:
    """Yield (search over the cells of a pool, the position in the pool of each of its candidates).

    features, posteriors: read rows by position. cells: of the pool. free, of_cell: positions of the
    candidates and of the labelled samples of each cell. labels_at: the class at each position that
    is labelled; None where there are no classes.

    Raises:
        SelectionError: labelled samples have no classes.
    """
    labelled = np.concatenate(of_cell)
    starts = np.cumsum([0, *map(len, of_cell)]).tolist()
    unsure, classes = [], []
    for members in free:
        p = posteriors(members.tolist()).float()
        unsure.append(closeness(p))
        classes.append(p.argmax(dim=1).int())
    labels = None if labels_at is None else labels_at[torch.from_numpy(labelled)]
    visible = [
        torch.cat([torch.arange(starts[near], starts[near + 1]) for near in nearest])
        for nearest in (cells.neighbours(cell, PROBES) for cell in range(len(free)))
    ]
    with copied_rows(features, free) as (copy, starts_of_free):
        search = BallSearch(
            copy,
            starts_of_free,
            torch.cat(unsure),
            torch.cat(classes),
            normalise(features(labelled.tolist())),
            starts,
            posteriors(labelled.tolist()).float().argmax(dim=1).int(),
            one_label_each(labels, len(labelled)) if len(labelled) else torch.empty(0).long(),
            visible,
        )
        yield search, np.concatenate(free)
