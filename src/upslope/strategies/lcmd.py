"""LCMD: the farthest sample of the largest cluster, again and again (Holzmueller et al. 2023).

Labelled and chosen samples are centres, and every candidate belongs to the nearest one, over
sketches g of gradients. With d(x) the distance of x to its centre, the next sample is

    argmax d(x) over the cluster in which sum_x d(x)^2 is largest.

"Largest cluster, maximum distance". Where nothing is labelled, the first is the longest g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.options import Parameters
from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.distances import nearest_rows
from upslope.strategies.seeding import Rows, Screening
from upslope.strategies.sketches import Dim, Loss, sketch_need


@dataclass(frozen=True)
class LCMD(QueryStrategy):
    """The farthest gradient of the cluster that is spread most."""

    name: ClassVar[str] = "lcmd"
    reference: ClassVar[str] = "Holzmüller et al., JMLR 2023"
    signal_cost: ClassVar[str] = "one forward and backward per candidate and per labelled sample"
    cost: ClassVar[str] = "n (m + K) dim; memory (n + m) dim"
    best_for: ClassVar[str] = "medium and large batches"

    loss: Loss = "likely-label"
    dim: Dim = 512
    parameters: Parameters = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Sketches of the gradients, of the labelled set too."""
        return (sketch_need(self.loss, self.dim, self.parameters, labelled=True),)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """The farthest of the largest cluster, `budget` times."""
        (need,) = self.needs
        x, y = pool.signal(need).double(), pool.labelled_signal(need).double()
        positions, spreads = largest_cluster(x, y, budget)
        return Choice(positions, gains=spreads)


def largest_cluster(x: Tensor, y: Tensor, budget: int) -> tuple[list[int], list[float]]:
    """Return the positions in x, in order of choice, and the spread of the cluster of each, which
    is infinite before there is a centre. x: (n, d), y: (m, d), the centres to begin with."""
    n, m = len(x), len(y)
    longest, mean = int(x.square().sum(dim=1).argmax()), x.mean(dim=0)
    x, y = x - mean, y - mean  # distances stay, and lose no digits to an offset
    vectors = Rows(x)
    norms = vectors.squared_norms()
    screening = Screening(vectors, norms, budget)
    nearest, cluster = torch.full((n,), torch.inf, dtype=x.dtype), torch.zeros(n).long()
    if m:
        nearest, cluster = nearest_rows(x, y)
    free = torch.ones(n, dtype=torch.bool)
    positions: list[int] = []
    spreads: list[float] = []
    for k in range(budget):
        if m + k == 0:
            best = longest
            spreads.append(torch.inf)
        else:
            spread = torch.zeros(m + budget, dtype=x.dtype)
            spread.index_add_(0, cluster, torch.where(free, nearest, 0.0))
            # A cluster without a candidate left comes after one whose candidates are all alike.
            sizes = torch.zeros(m + budget, dtype=torch.int64).index_add_(0, cluster, free.long())
            largest = int(spread.masked_fill_(sizes == 0, -1.0).argmax())
            best = int(torch.where(free & (cluster == largest), nearest, -1.0).argmax())
            spreads.append(float(spread[largest]))
        positions.append(best)
        free[best] = False
        rows = screening.rows(best, nearest)
        part = slice(None) if rows is None else rows
        squared_distances = norms[part] + norms[best] - 2 * vectors.products(best, rows)
        squared_distances.clamp_(min=0)
        closer = squared_distances < nearest[part]
        closer_rows = closer.nonzero().flatten() if rows is None else rows[closer]
        nearest[closer_rows], cluster[closer_rows] = squared_distances[closer], m + k
    return positions, spreads
