"""BADGE: a batch of gradients that are long and differ (Ash et al., ICLR 2020).

With y the most probable class, the gradient of the cross-entropy at the label y by the last weight
matrix is g = (p - e_y) h^T. The batch is a k-means++ seeding of these vectors: each sample is drawn
in proportion to the squared distance of its gradient to the nearest one drawn before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from upslope.conjugate_gradients import scale_of
from upslope.options import LATER, Temperature
from upslope.pool import Need, PoolView
from upslope.posterior import least_confidence
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.posteriors import posterior_need
from upslope.strategies.seeding import OuterProducts, k_means_plus_plus


@dataclass(frozen=True)
class Badge(QueryStrategy):
    """K-means++ seeding of last-layer gradients at the label that the model would give."""

    name: ClassVar[str] = "badge"
    reference: ClassVar[str] = "Ash et al., ICLR 2020"
    signal_cost: ClassVar[str] = "one forward per candidate"
    cost: ClassVar[str] = "n K (C + d); memory n (C + d)"
    best_for: ClassVar[str] = "medium and large budgets; a strong default for batches"

    temperature: Temperature = field(default=1.0, metadata=LATER)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the needs for posteriors and features."""
        return (posterior_need(self.temperature), Need.of("features"))

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """The seeds; scores are the gradient norms."""
        gradients, unit = self._gradients(pool)
        positions = k_means_plus_plus(gradients, budget, rng)
        return Choice(positions, gradients.squared_norms().sqrt() * unit)

    def log_weights(self, pool: PoolView) -> Tensor:
        """Return the logarithms of the gradient norms, (n,)."""
        gradients, unit = self._gradients(pool)
        return gradients.squared_norms().log() / 2 + math.log(unit)

    def _gradients(self, pool: PoolView) -> tuple[OuterProducts, float]:
        """The gradients by a power of two, and that: squares of those of a network that is sure of
        all samples leave single precision."""
        p, h = (pool.signal(need).float() for need in self.needs)
        # p_y - 1, with the digits that a network that is sure leaves to the other classes.
        at_logits = p.scatter(1, p.argmax(dim=1, keepdim=True), -least_confidence(p)[:, None])
        unit = scale_of(at_logits) or 1.0
        return OuterProducts(at_logits / unit, h), unit
