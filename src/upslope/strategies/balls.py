"""Balls around labelled samples, and how dense the samples are that no ball covers (see `dcom`).

Distances are computed once: pairs within the largest radius are held if there are few of them, and
all that DCoM asks follows from these. Of more, only the numbers by distance are held, and distances
are computed again where they are asked for, of samples that are not yet covered alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upslope.strategies.cover import most_pairs
from upslope.strategies.distances import BLOCK, slices
from upslope.strategies.near_pairs import Lists, Pairs, near_pairs

LABELS_AT_ONCE = 2048
"""Labelled samples after which candidates that are covered drop out."""
_TIE = 1e-12
"""Shares that differ by less differ by rounding: of 0.2 + 0.4, and three of five."""


class _FewPairs:
    """Pairs, as long as they are few. total: how many there are at all distances."""

    def __init__(self, total: int) -> None:
        self._parts: list[Pairs] | None = []
        self._count = 0
        self._most = most_pairs(total)

    def add(self, pairs: Pairs) -> None:
        """Hold these too, or none from here on."""
        self._count += len(pairs.left)
        if self._count > self._most:
            self._parts = None
        if self._parts is not None:
            self._parts.append(pairs)

    def join(self) -> Pairs | None:
        """Return all of them; None where they were too many."""
        return None if self._parts is None else Pairs.join(self._parts)


class PureRadii:
    """How far the ball of each labelled sample reaches: counts of samples by their distance.

    labels: (m,), of the labelled samples. delta: the largest radius. resolution: the width at which
    bisections end.
    """

    def __init__(self, labels: Tensor, delta: float, resolution: float) -> None:
        self.labels = labels
        self.rounds = max(0, math.ceil(math.log2(delta / resolution)))
        # All radii that a bisection may try or end at.
        self.grid = torch.arange(2 ** (self.rounds + 1) + 1) * delta / 2 ** (self.rounds + 1)
        self._counts = torch.zeros(2, len(labels) * len(self.grid), dtype=torch.int64)  # pure, all

    def count(self, left: Tensor, classes: Tensor, squares: Tensor) -> None:
        """Count samples near labelled ones. left: (k,) labelled samples; classes: (k,) predicted
        for the samples near them; squares: (k,) of the distances, within delta."""
        bins = len(self.grid)
        # The interior of the ball of radius grid[k] holds what falls into bins up to k.
        places = squares.sqrt().div_(self.grid[1]).long().clamp_(max=bins - 2).add_(1)
        places += left * bins
        is_pure = classes == self.labels[left]
        ones = torch.ones(len(left), dtype=torch.int64)
        self._counts[0].index_add_(0, places, is_pure.long())
        self._counts[1].index_add_(0, places, ones)

    def radii(self, threshold: float) -> Tensor:
        """Return the radius of each ball, by bisection: (m,).

        threshold: the least share of samples in its interior that are predicted to be of its class.
        """
        # How many lie within each radius of the grid.
        pure, all_ = self._counts.view(2, len(self.labels), len(self.grid)).cumsum(dim=2).double()
        low = torch.zeros(len(self.labels), 1, dtype=torch.int64)
        high = torch.full_like(low, len(self.grid) - 1)
        for _ in range(self.rounds):
            middle = (low + high) // 2
            least = (threshold - _TIE) * all_.gather(1, middle)
            is_pure = pure.gather(1, middle) >= least
            low, high = torch.where(is_pure, middle, low), torch.where(is_pure, high, middle)
        radii: Tensor = self.grid[((low + high) // 2)[:, 0]]
        return radii


class Surroundings:
    """What lies within `delta` of each labelled sample.

    x: (n, d) candidates and y: (m, d) labelled samples, rows of unit length. of_x: (n,) and of_y:
    (m,), the classes predicted for them. labels: (m,), what y is. delta: the largest radius.
    resolution: the width at which bisections end.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        of_x: Tensor,
        of_y: Tensor,
        labels: Tensor,
        delta: float,
        resolution: float,
    ) -> None:
        self.x, self.y = x, y
        self.is_near = torch.zeros(len(x), dtype=torch.bool)
        """Which candidates the balls of radius delta cover, (n,)."""
        self.pairs: Pairs | None = None
        """Labelled sample, candidate; None where they are too many to hold."""
        self._pure = PureRadii(labels, delta, resolution)
        for part in near_pairs(y, None, delta):
            self._pure.count(part.left.long(), of_y[part.right.long()], part.squares)
        few = _FewPairs(len(y) * len(x))
        for part in near_pairs(y, x, delta):
            right = part.right.long()
            self._pure.count(part.left.long(), of_x[right], part.squares)
            self.is_near[right] = True
            few.add(part)
        self.pairs = few.join()

    def radii(self, threshold: float) -> Tensor:
        """Return the radius of each ball: (m,). threshold: as for `PureRadii.radii`."""
        return self._pure.radii(threshold)

    def covered(self, radii: Tensor) -> Tensor:
        """Return which candidates lie in a ball: (n,) booleans. radii: (m,), at most delta."""
        is_covered = torch.zeros(len(self.x), dtype=torch.bool)
        squares = radii.square()
        if self.pairs is not None:
            is_inside = self.pairs.squares < squares[self.pairs.left.long()]
            is_covered[self.pairs.right[is_inside].long()] = True
            return is_covered
        for rows in slices(len(self.y), LABELS_AT_ONCE):
            left = (self.is_near & ~is_covered).nonzero().flatten()
            largest = float(radii[rows].max())
            for part in near_pairs(self.y[rows], self.x[left], largest):
                is_inside = part.squares < squares[rows][part.left.long()]
                is_covered[left[part.right[is_inside].long()]] = True
        return is_covered


class UncoveredDensity:
    """How many samples that no ball covers lie within a radius of each candidate.

    x: (n, d) of unit length. is_covered: (n,), and `take` brings it up to date.
    """

    def __init__(self, x: Tensor, is_covered: Tensor, radius: float) -> None:
        self.x, self.is_covered, self.radius = x, is_covered, radius
        self.squares = x.square().sum(dim=1)
        self.counts = torch.zeros(len(x))
        """Float, as it is weighed against other numbers: (n,)."""
        self._lists: Lists | None = None
        self._look()

    def _look(self) -> None:
        """Count, and hold the pairs in which one at least is uncovered, if they are few."""
        self.counts.zero_()
        open_, rest = (part.nonzero().flatten() for part in (~self.is_covered, self.is_covered))
        few = _FewPairs(len(self.x) ** 2)
        for left, other in ((open_, None), (rest, self.x[open_])):
            for part in near_pairs(self.x[left], other, self.radius):
                pairs = Pairs(
                    left[part.left.long()].int(), open_[part.right.long()].int(), part.squares
                )
                self.counts += torch.bincount(pairs.left, minlength=len(self.x))
                few.add(pairs)
                if other is not None:
                    few.add(Pairs(pairs.right, pairs.left, pairs.squares))
        pairs_to_list = few.join()
        self._lists = None if pairs_to_list is None else Lists(pairs_to_list, len(self.x))

    def take(self, row: int) -> None:
        """Cover what lies within the radius of a candidate."""
        place = torch.tensor([row])
        if self._lists is not None:
            near = self._lists.of(place)
            new = near[~self.is_covered[near]]
            self.is_covered[new] = True
            self.counts -= torch.bincount(self._lists.of(new), minlength=len(self.x))
            return
        new = (self._is_near(place)[:, 0] & ~self.is_covered).nonzero().flatten()
        self.is_covered[new] = True
        for part in torch.split(new, max(1, BLOCK // len(self.x))) if len(new) else ():
            self.counts -= self._is_near(part).sum(dim=1)
        # Each open sample counts at its neighbours, and is listed with each at most twice.
        if 2 * float(self.counts.sum(dtype=torch.float64)) <= most_pairs(len(self.x) ** 2):
            self._look()

    def _is_near(self, rows: Tensor) -> Tensor:
        """Whether each candidate lies within the radius of some: (n, k) booleans."""
        return is_near(self.x, self.squares, rows, self.radius)


def is_near(x: Tensor, squares: Tensor, rows: Tensor, radius: float) -> Tensor:
    """Return whether each row of x lies within a radius of some rows: (n, k) booleans.

    x: (n, d). squares: (n,) of the lengths of its rows. rows: (k,) positions.
    """
    # Few rows on the right take a product a third of the time that they take on the left.
    products = torch.addmm(squares[rows], x, x[rows].T, alpha=-2)
    return products.add_(squares[:, None]) < radius**2
