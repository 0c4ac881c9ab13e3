"""Core-set: label the samples that leave no sample far from a label (Sener and Savarese 2018).

With features h and the labelled set L, choose the K samples s that make the cover

    max_i min_{j in s + L} || h_i - h_j ||

small. Greedy k-center takes the farthest sample K times and is at most twice the best. Robust
k-center then looks for a smaller radius r by integer programming, letting some samples be outliers:

    find u, v in {0, 1}:  sum_j u_j = K,   v_i + sum_{j: d_ij <= r} u_j >= 1 for each i that no
    label covers within r,   sum_i v_i <= outliers

between the largest radius proven impossible and the smallest attained, by bisection.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.distances import distance_blocks, nearest_squared, subtract_mean
from upslope.strategies.seeding import Rows, Screening

PAIRS = 5_000_000
"""Most (sample, centre) pairs in one integer program: a few GB in the solver."""


_SMALL = 1e-3
"""Of the squared lengths of vectors: smaller squared distances between them are computed in double
precision, as rounding of single precision is about a millionth of the lengths."""
_SAME = 1e-12
"""The same for double precision, below which two vectors are one."""


def k_center(x: Tensor, y: Tensor, budget: int) -> tuple[list[int], Tensor, list[float]]:
    """Greedy k-center: rows of x chosen, each row's distance to its nearest centre then, and the
    squared distance that each chosen row had to the centres before it.

    x: (n, d) candidates; y: (m, d) centres there already. With none, the first centre is the
    candidate nearest to the mean, at an infinite distance. Ties go to the first row. Where the
    distances left are too small for single precision, the rest is computed in double precision.
    """
    nearest = nearest_squared(x, y)
    lengths = x.square().sum(dim=1)
    screening = Screening(Rows(x), lengths, budget)
    positions: list[int] = []
    gains: list[float] = []
    for _ in range(budget):
        cold = not len(y) and not positions
        longest = lengths.masked_fill(nearest < 0, 0).max()
        if x.dtype == torch.float32 and nearest.max() < _SMALL * longest:
            x, y = x.double(), y.double()
            lengths = x.square().sum(dim=1)
            nearest = nearest_squared(x, torch.cat([y, x[positions]]))
            nearest[nearest < _SAME * lengths] = 0
            nearest[positions] = -1.0
            screening = Screening(Rows(x), lengths, budget - len(positions))
        centre = int((x - x.mean(dim=0)).square().sum(dim=1).argmin() if cold else nearest.argmax())
        gains.append(float(nearest[centre]))
        rows = screening.rows(centre, nearest)
        part = slice(None) if rows is None else rows
        both_lengths = lengths[part] + lengths[centre]
        step = torch.addmv(both_lengths, x[part], x[centre], alpha=-2)
        if x.dtype == torch.float64:
            step[step < _SAME * both_lengths] = 0
        nearest[part] = torch.minimum(nearest[part], step.clamp_(min=0))
        # Chosen rows lie below every distance, so that duplicates are never chosen twice.
        nearest[centre] = -1.0
        positions.append(centre)
    return positions, nearest.clamp_(min=0).sqrt_(), gains


@dataclass(frozen=True)
class CoreSet(QueryStrategy):
    """Greedy k-center on the penultimate features."""

    name: ClassVar[str] = "core-set"
    reference: ClassVar[str] = "Sener and Savarese, ICLR 2018, Algorithm 1"
    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    cost: ClassVar[str] = "n (m + K) d; memory n d"
    best_for: ClassVar[str] = "large budgets, few classes"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features, of the labelled set too."""
        return (Need.of("features", labelled=True),)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """The farthest candidate, `budget` times."""
        (need,) = self.needs
        x, y = subtract_mean(pool.signal(need), pool.labelled_signal(need))
        positions, nearest, gains = k_center(x, y, budget)
        return Choice(positions, notes={"radius": float(nearest.max())}, gains=gains)


@dataclass(frozen=True)
class RobustCoreSet(CoreSet):
    """K-center by integer programming, with a share of outliers, from the greedy answer down."""

    name: ClassVar[str] = "core-set-robust"
    reference: ClassVar[str] = "Sener and Savarese, ICLR 2018, Algorithm 2"
    cost: ClassVar[str] = "greedy, then integer programs until `seconds` are over"
    best_for: ClassVar[str] = "pools of up to some thousand candidates; beyond, the greedy answer"

    outliers: Annotated[
        float, Field(ge=0, lt=1, description="share of the candidates that may stay uncovered")
    ] = 1e-4
    seconds: Annotated[float, Field(gt=0, description="time for the integer programs")] = 60.0
    gap: Annotated[
        float, Field(ge=0, lt=1, description="radius over its lower bound, less 1, that is enough")
    ] = 0.01

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """The cover of least radius found; notes hold the radius, its lower bound and the gap."""
        (need,) = self.needs
        # Small pools, whose distances may be compared to the last digit.
        x, y = (z.double() for z in subtract_mean(pool.signal(need), pool.labelled_signal(need)))
        positions, nearest, _ = k_center(x, y, budget)
        most_outliers = int(self.outliers * len(x))
        upper = _radius(nearest, most_outliers)
        # Without outliers no cover of K centres beats half the greedy radius; with them, none
        # is known to be worse than 0.
        lower = upper / 2 if most_outliers == 0 else 0.0
        to_labels = nearest_squared(x, y)
        end = time.monotonic() + self.seconds
        while upper > (1 + self.gap) * lower and (left := end - time.monotonic()) > 0:
            radius = (lower + upper) / 2
            if not lower < radius < upper:  # no number lies between them, with a gap of 0
                break
            cover = _cover(x, to_labels, radius, budget, most_outliers, left)
            if cover is None:
                break
            if not cover:
                lower = radius
                continue
            positions = _fill(cover, x, y, budget)
            distances = torch.minimum(to_labels, nearest_squared(x, x[positions])).sqrt()
            upper = min(radius, _radius(distances, most_outliers))
        notes = {"radius": upper, "lower_bound": lower}
        if lower > 0:
            notes["gap"] = upper / lower - 1
        return Choice(positions, notes=notes)


def _radius(nearest: Tensor, outliers: int) -> float:
    """The largest distance once the `outliers` largest are left out."""
    return float(nearest.sort(descending=True).values[min(outliers, len(nearest) - 1)])


def _cover(
    x: Tensor, to_labels: Tensor, radius: float, budget: int, outliers: int, seconds: float
) -> list[int] | None:
    """At most `budget` rows of x that cover all but `outliers` of those that no label covers; an
    empty list if there are proven to be none, None if it is not known. to_labels: (n,), squared
    distances to the nearest label."""
    # Half a second to import, which every command would pay for this one strategy.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    open_rows = (to_labels > radius**2).nonzero().flatten()
    pairs: list[Tensor] = []
    total = 0
    for rows, squared_distances in distance_blocks(x[open_rows], x):
        within = (squared_distances <= radius**2).nonzero()
        total += len(within)
        if total > PAIRS:
            return None
        pairs.append(within + torch.tensor([rows.start, 0]))
    if len(open_rows) <= outliers:
        return [0]
    i, j = torch.cat(pairs).numpy().T
    n, m = len(x), len(open_rows)
    covers = csr_array((np.ones(len(i)), (i, j)), shape=(m, n))
    limits = vstack(
        [
            csr_array(np.concatenate([np.ones(n), np.zeros(m)])[None]),
            csr_array(np.concatenate([np.zeros(n), np.ones(m)])[None]),
        ]
    )
    answer = milp(
        np.zeros(n + m),
        integrality=np.ones(n + m),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(hstack([covers, eye_array(m)]), lb=1),
            LinearConstraint(limits, ub=[budget, outliers]),
        ],
        options={"time_limit": seconds},
    )
    if answer.x is not None:
        return [int(k) for k in np.flatnonzero(answer.x[:n] > 0.5)]
    return [] if answer.status == 2 else None


def _fill(cover: list[int], x: Tensor, y: Tensor, budget: int) -> list[int]:
    """`cover`, and greedy centres on top where it is short of the budget."""
    in_cover = set(cover)
    rest = [i for i in range(len(x)) if i not in in_cover]
    more, _, _ = k_center(x[rest], torch.cat([y, x[cover]]), budget - len(cover))
    return cover + [rest[i] for i in more]
