"""BAIT: a batch that leaves the least of the pool's Fisher information unknown (Ash et al. 2021).

With p the posterior of x, h its features, S_x = diag(p) - p p^T and n candidates, the Fisher
information of the last weight matrix is

    I(x) = sum_y p_y g_y g_y^T = S_x (x) h h^T,    g_y = (p - e_y) (x) h            (C d x C d)

and the batch s is to minimise, with F = sum_x I(x) over the candidates and L the labelled set,

    tr( M^-1 F ),    M = lambda 1 + sum over L and s of I(x):

2K samples are added one by one, each that which lowers it most; then K are taken away again, each
that which raises it least.

How the traces are followed is in `upslope.strategies.fisher`; `fisher_bounds` tells which
candidates may be the next, so that few need to be followed. `fisher_blocks` chooses from large
pools, near to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from upslope.errors import SelectionError
from upslope.options import LATER, Temperature
from upslope.pool import Need, PoolView
from upslope.posterior import in_double
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.fisher import Fisher
from upslope.strategies.fisher_bounds import TIE, LazyGains
from upslope.strategies.information import information
from upslope.strategies.numbers import MOST_NEW, check_new
from upslope.strategies.posteriors import posterior_need

_DIGITS = 1e13
"""Ratio of squared features to the ridge beyond which double precision does not hold both."""
MOST = 6000
"""Largest C d: a matrix of that size in double precision is 288 MB, and four are held."""


@dataclass(frozen=True)
class Bait(QueryStrategy):
    """Least remaining Fisher information of the last layer, for few classes."""

    name: ClassVar[str] = "bait"
    reference: ClassVar[str] = "Ash et al., NeurIPS 2021"
    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    cost: ClassVar[str] = (
        "(n + m) C^2 d^2 + C^3 d^3 + n C d^2, and for candidates that bounds leave, n at most, "
        "C^2 d^2 + K C^2 d each; memory 5 (C d)^2 + 3 n C^2 + 2 n d doubles, C d <= 6000"
    )
    best_for: ClassVar[str] = "small and medium budgets, few classes"

    ridge: Annotated[float, Field(gt=0, description="lambda; the source has 0.01 on CIFAR-10")] = (
        0.01
    )
    temperature: Temperature = field(default=1.0, metadata=LATER)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Posteriors and features, of the labelled set too."""
        return (
            posterior_need(self.temperature, labelled=True),
            Need.of("features", labelled=True),
        )

    def check_shapes(self, signals: Mapping[Need, Tensor]) -> None:
        """Also refuse classes times features beyond 6000, whose matrices would not fit."""
        super().check_shapes(signals)
        p, h = (signals[need] for need in self.needs)
        check_size(p.shape[1], h.shape[1])

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """Add 2K candidates one by one, then take K away again."""
        p, h = (pool.signal(need).double() for need in self.needs)
        check_size(p.shape[1], h.shape[1])
        self.check_lengths(h)
        p_l, h_l = (pool.labelled_signal(need).double() for need in self.needs)
        # As many threads as torch has: another number would give other bits.
        with threadpool_limits(torch.get_num_threads(), user_api="blas"):
            return self._search(in_double(p), h, information(in_double(p_l), h_l), budget)

    def check_lengths(self, h: Tensor) -> None:
        """Refuse features so long that rounding hides the ridge. h: (n, d).

        Raises:
            SelectionError: their squares are beyond the digits of double precision.
        """
        longest = float(h.abs().max())
        if longest**2 > _DIGITS * self.ridge:
            raise SelectionError(
                f"Expected features for {self.name} whose squares are within {_DIGITS:g} of the "
                f"ridge {self.ridge:g} but the largest entry is {longest:.3g}: rounding would hide "
                "the ridge. Scale the features, or raise `ridge`."
            )

    def check_information(self, largest: float) -> None:
        """Refuse information so far above what is known that rounding decides. largest: tr Q.

        Raises:
            SelectionError: it is.
        """
        check_new(self.name, largest, self.ridge)

    def _search(self, p: Tensor, h: Tensor, labelled: Tensor, budget: int) -> Choice:
        fisher = Fisher(p, h, information(p, h), labelled, self.ridge)
        search = LazyGains(fisher, p)
        self.check_information(search.most_new(MOST_NEW))
        positions = [search.take() for _ in range(min(2 * budget, len(p)))]
        remaining = list(positions)
        while len(remaining) > budget:
            losses = fisher.losses(remaining)
            # Of equal ones the last chosen goes, so that ties stay with the smaller id.
            least = float(losses.min())
            place = int((losses <= least + TIE * abs(least)).nonzero()[-1])
            near = [remaining[k] for k in losses.argsort().tolist()]
            fisher.remove(remaining.pop(place), near)
        return Choice(remaining, notes={"trace": fisher.trace()})


def check_size(classes: int, width: int) -> None:
    """Raise SelectionError where matrices of classes times features would not fit."""
    if classes * width > MOST:
        raise SelectionError(
            f"Expected classes times features to be at most {MOST} for bait, whose matrices are "
            f"that size squared, but {classes} times {width} is {classes * width}. Take badge, "
            "or a narrower network."
        )
