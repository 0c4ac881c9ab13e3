"""Core-set and LCMD over all cells of a pool at once, without comparing all pairs.

Both take the sample that lies farthest from the centres (the labelled and chosen samples): core-set
of all samples, LCMD of the cluster in which sum d(x)^2 is largest, where d(x) is the distance of x
to its nearest centre. Two steps keep d(x):

    add       A new centre is compared at once with the samples of the `PROBES` cells whose means
              lie nearest to it. For all others d(x) is an upper bound from then on.
    settle    Before a sample is taken, or a cluster is the largest, its d(x) are compared with all
              centres that they have not met; if one falls, the search looks again.

So core-set takes what the exact algorithm takes, up to rounding: no bound is above the distance
that it takes. LCMD is near it: that no cluster is larger is seen of the bounds, but samples of
other clusters may belong to the one that is taken.

Kept are 20 bytes per sample. Rows are read from a copy in the order of the cells, in a file that
has no name and is gone with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.files import disk_errors
from upslope.strategies.cells import Cells, Positions, RowReader, nearest_cells
from upslope.strategies.distances import BLOCK, nearest_rows

PROBES = 4
"""Cells whose samples a new centre is compared with at once. More make `add` longer and `settle`
shorter; `benchmarks/two_stage.py` measures both together."""
_SMALL = 1e-2
"""Of squared lengths: distances that are smaller are computed in double precision, as inner
products in single precision lose a millionth of the lengths."""
TOGETHER = 32
"""Samples of a cell that core-set settles together, those with the largest bounds."""


@dataclass
class Search:
    """The state of the search; samples are in the order of the cells.

    rows: (n, d) as the source has them, on the disk. starts: (cells + 1,) where each cell begins.
    mean: (d,) about that of the pool, taken off rows so that an offset costs no digits. means:
    (cells, d) of the cells, less `mean`. free: (n,) whether a sample may be chosen. labelled:
    (m, d) rows of centres that are there already. budget: centres that will be added.
    """

    rows: Tensor
    starts: list[int]
    means: Tensor
    mean: Tensor
    free: Tensor
    labelled: Tensor
    budget: int

    def __post_init__(self) -> None:
        n, d = self.rows.shape
        total = len(self.labelled) + self.budget
        self.centres, self.squares_of_centres = torch.empty(total, d), torch.empty(total)
        self.count = 0
        self.bound = torch.full((n,), torch.inf)
        """At least the squared distance of each sample to its nearest centre, (n,)."""
        self.nearest = torch.full((n,), total, dtype=torch.int32)
        """The number of the centre that the bound is of, (n,); `total`: none yet."""
        self.met = torch.zeros(n, dtype=torch.int32)
        """How many centres, from the first on, each sample was compared with, (n,)."""
        # Of each centre's cluster: sum of bounds, free samples; last, those without a centre.
        self.spread = torch.zeros(total + 1, dtype=torch.float64)
        self.size = torch.zeros(total + 1, dtype=torch.int64)
        self.size[total] = int(self.free.sum())
        self.top = torch.full((len(self.means),), torch.inf)  # the largest bound of each cell
        self.squares = torch.cat([self._read(part).square().sum(dim=1) for part in self._cells()])
        for row in self.labelled:
            self.add((row - self.mean).float())

    def add(self, x: Tensor) -> None:
        """Add a centre, and compare it with the samples near it. x: (d,) its row, less the mean."""
        number = self.count
        self.centres[number], self.squares_of_centres[number] = x, x @ x
        self.count += 1
        for cell in nearest_cells(self.means, x, PROBES):
            part = self._cell(cell)
            distances = self._read(part).sub_(x).square_().sum(dim=1)
            self._lower(torch.arange(part.start, part.stop), distances, torch.tensor(number))
            self.met[part] += (self.met[part] == number).int()  # else one before was left out
            self.top[cell] = self._bounds(cell).max()

    def settle(self, samples: Tensor) -> bool:
        """Compare samples with the centres that they have not met; return whether a bound fell.

        samples: (k,) positions.
        """
        samples = torch.unique(samples[self.met[samples] < self.count])
        if not len(samples):
            return False
        fell = False
        step = max(1, BLOCK // max(self.count, self.rows.shape[1]))  # of distances, and of rows
        for part in torch.split(samples[self.met[samples].argsort()], step):
            first = int(self.met[part[0]])
            distances = torch.addmm(
                self.squares_of_centres[first : self.count],
                self._read(part), self.centres[first : self.count].T, alpha=-2,
            )  # fmt: skip
            least, centres = distances.min(dim=1)
            least, centres = least + self.squares[part], centres + first
            both_squares = self.squares[part] + self.squares_of_centres[centres]
            is_small = least < _SMALL * both_squares
            if is_small.any():
                x, y = self._read(part[is_small]), self.centres[first : self.count]
                in_double, places = nearest_rows(x.double(), y.double())
                least[is_small], centres[is_small] = in_double.float(), places + first
            fell |= self._lower(part, least, centres)
            self.met[part] = self.count
        return fell

    def take(self, sample: int) -> None:
        """Choose a free sample: it is a centre from here on."""
        self.free[sample] = False
        cluster = int(self.nearest[sample])
        self.size[cluster] -= 1
        if cluster < len(self.centres):
            self.spread[cluster] -= float(self.bound[sample])
        self.add(self._read(torch.tensor([sample]))[0])
        cell = int(np.searchsorted(self.starts, sample, side="right")) - 1
        self.top[cell] = self._bounds(cell).max()  # which need not be among those nearest to it

    def longest(self) -> int:
        """Return the free sample whose row, as it is, is longest."""
        lengths = torch.cat([self.rows[p].double().square().sum(dim=1) for p in self._cells()])
        return int(lengths.masked_fill(~self.free, -1.0).argmax())

    def central(self) -> int:
        """Return the free sample nearest to the mean."""
        total = sum(self._read(part).double().sum(dim=0) for part in self._cells())
        mean = total / len(self.rows)
        squares = torch.cat([(self._read(p) - mean).square().sum(dim=1) for p in self._cells()])
        return int(squares.masked_fill(~self.free, torch.inf).argmin())

    def farthest(self) -> int:
        """Return the free sample that lies farthest from all centres, settled."""
        while True:
            cell = int(self.top.argmax())
            bounds, start = self._bounds(cell), self.starts[cell]
            best = start + int(bounds.argmax())
            if int(self.met[best]) == self.count:
                return best
            others = bounds.topk(min(TOGETHER, len(bounds))).indices + start
            self.settle(torch.cat([torch.tensor([best]), others]))  # of ties, `topk` has any
            self.top[cell] = self._bounds(cell).max()

    def _bounds(self, cell: int) -> Tensor:
        """The bounds of a cell's samples, -1 where they are not free."""
        part = self._cell(cell)
        return self.bound[part].masked_fill(~self.free[part], -1.0)

    def _lower(self, samples: Tensor, distances: Tensor, centre: Tensor) -> bool:
        """Take smaller squared distances as bounds, of a centre or of one for each sample."""
        closer = distances < self.bound[samples]
        samples, distances = samples[closer], distances[closer].clamp_(min=0)
        centre = centre[closer] if centre.dim() else centre.expand(len(samples))
        is_free = self.free[samples]
        former, now = self.nearest[samples[is_free]].long(), centre[is_free].long()
        one = torch.ones_like(former)
        before = self.bound[samples[is_free]].double().masked_fill(former == len(self.centres), 0.0)
        self.size.index_add_(0, former, one, alpha=-1).index_add_(0, now, one)
        self.spread.index_add_(0, former, before, alpha=-1)
        self.spread.index_add_(0, now, distances[is_free].double())
        self.bound[samples] = distances
        self.nearest[samples] = centre.int()
        return bool(closer.any())

    def _cell(self, cell: int) -> slice:
        return slice(self.starts[cell], self.starts[cell + 1])

    def _cells(self) -> Iterator[slice]:
        return (self._cell(cell) for cell in range(len(self.means)))

    def _read(self, part: slice | Tensor) -> Tensor:
        return (self.rows[part] - self.mean).float()


def farthest(search: Search) -> list[int]:
    """Return the samples of core-set, `budget` of them: each the farthest from all centres."""
    positions: list[int] = []
    for _ in range(search.budget):
        best = search.farthest() if search.count else search.central()
        positions.append(best)
        search.take(best)
    return positions


def farthest_of_largest(search: Search) -> list[int]:
    """Return the samples of LCMD, `budget` of them: each the farthest of the largest cluster."""
    positions: list[int] = []
    none = len(search.centres)
    for _ in range(search.budget):
        best = search.longest() if not search.count else -1
        while best < 0:
            search.spread[none] = torch.inf  # those that no centre was compared with come first
            largest = int(search.spread.masked_fill(search.size == 0, -1.0).argmax())
            inside = (search.free & (search.nearest == largest)).nonzero().flatten()
            if not search.settle(inside):
                best = int(inside[search.bound[inside].argmax()])
        positions.append(best)
        search.take(best)
    return positions


@contextmanager
def searching(
    rows: RowReader,
    cells: Cells,
    candidates: Sequence[Positions],
    labelled: Positions,
    budget: int,
) -> Iterator[tuple[Search, NDArray[np.int64]]]:
    """Yield (search over the cells of a pool, the position in the pool of each of its samples).

    rows: reads rows by position. cells: of the pool. candidates: positions of those of each cell.
    labelled: positions. budget: to be chosen.
    """
    sizes = [len(members) for members in cells.members]
    mean = torch.tensor(sizes, dtype=torch.float32) / sum(sizes) @ cells.means
    order = np.concatenate(cells.members)
    free = torch.from_numpy(np.isin(order, np.concatenate(candidates)))
    with copied_rows(rows, cells.members) as (copy, starts):
        labelled_rows = rows(labelled.tolist())
        yield (
            Search(copy, starts, cells.means - mean, mean, free, labelled_rows, budget),
            order,
        )


@contextmanager
def copied_rows(
    rows: RowReader, members: Sequence[Positions]
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield (rows of a pool in the order of its cells, on the disk; where each cell begins).

    rows: reads rows by position. members: positions of each cell. The file has no name, and is gone
    with the process.
    """
    place = Path(tempfile.gettempdir())
    with ExitStack() as stack:
        with disk_errors(place):
            file = stack.enter_context(tempfile.TemporaryFile())
        for of_cell in members:
            part = rows(of_cell.tolist()).flatten(start_dim=1).contiguous().numpy()
            with disk_errors(place):
                file.write(part.data)
        with disk_errors(place):
            file.flush()
        starts = np.cumsum([0, *map(len, members)]).tolist()
        copy = np.memmap(file, part.dtype, "r+", shape=(starts[-1], part.shape[1]))
        yield torch.from_numpy(copy), starts
        del copy
