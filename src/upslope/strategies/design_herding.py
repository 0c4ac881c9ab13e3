"""Design, then coverage: UHerding among the samples that an optimal design takes first (ours).

The squared gradient norm of a sample is the trace of its Fisher information: the first step of an
optimal design in which nothing is known and the pool does not matter. The design with both put in,
what is labelled and what the pool looks like (`binary_bait`), asks what the head cannot tell yet,
but gives no thought to how many samples per label speaks for; coverage (`coverage`) does, but asks
nothing of the head beyond a margin. So

1. the design takes the 4 K candidates that lower tr(M^-1 F) most, one by one;
2. among these alone, K are taken by the gain in uncertain candidates covered,

    sum_i u_i [ k(i, x) - max_{l in L + s} k(i, l) ]_+       over all candidates i

with k and u of UHerding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice
from upslope.strategies.binary_bait import batch_design, information_roots
from upslope.strategies.coverage import UHerding
from upslope.strategies.design import forward
from upslope.strategies.posteriors import posterior_need


@dataclass(frozen=True)
class DesignHerding(UHerding):
    """Coverage of the uncertain, by the samples that an optimal design would choose first."""

    name: ClassVar[str] = "design-herding"
    reference: ClassVar[str] = "ours; Ash et al., NeurIPS 2021, with Bae et al., ICLR 2025"
    signal_cost: ClassVar[str] = "one forward per candidate and labelled sample; one more training"
    cost: ClassVar[str] = "d^3 + n d^2 + 4 n d K, and that of u-herding; memory n d + d^2"
    best_for: ClassVar[str] = "frozen features, 2 to 20 labels per class"

    times: Annotated[
        int, Field(ge=1, description="samples that the design chooses, as a multiple of K")
    ] = 4
    ridge: Annotated[float, Field(gt=0, description="lambda of the design")] = 1.0

    @property
    def needs(self) -> tuple[Need, ...]:
        """What UHerding needs, and posteriors at temperature 1, of the labelled set too."""
        return (*super().needs, posterior_need(1.0, labelled=True))

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """The best coverage by samples of the design; scores are the first gains in coverage."""
        h_need, _, p_need = self.needs
        x = information_roots(pool.signal(p_need), pool.signal(h_need))
        y = information_roots(pool.labelled_signal(p_need), pool.labelled_signal(h_need))
        design = batch_design(x, y, budget, self.ridge)
        chosen = forward(design, min(self.times * budget, len(pool)))
        return self.cover(pool, budget, sorted(chosen))
