"""Binary BAIT: BAIT's design with one vector per sample, for any number of classes.

BAIT weighs C d numbers per sample. Here the posterior is read as one between the most probable
class and all others (Huseljic et al. 2024): with q = max p and features h the Fisher information is

    I(x) = q (1 - q) h h^T = phi phi^T,    phi = sqrt(q (1 - q)) h                      (d x d)

and the batch s is to minimise tr(M^-1 F) with m the labelled samples and K the budget

    F = mean of I over candidates and labelled
    M = lambda 1 + m / (m + K) (mean of I over labelled) + K / (m + K) sum over s of I(x)

(`upslope.strategies.design` has the greedy search.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from upslope.options import Temperature
from upslope.pool import Need, PoolView
from upslope.posterior import least_confidence
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.design import RankOneDesign, forward_backward
from upslope.strategies.features import Features, Steps, features_need
from upslope.strategies.numbers import check_new
from upslope.strategies.posteriors import posterior_need


@dataclass(frozen=True)
class BinaryBait(QueryStrategy):
    """Least remaining Fisher information, the most probable class against all others."""

    name: ClassVar[str] = "binary-bait"
    reference: ClassVar[str] = "Ash et al., NeurIPS 2021; Huseljic et al. 2024 (arXiv 2404.08981)"
    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    cost: ClassVar[str] = "d^3 + n d^2 + n d K; memory n d + d^2"
    best_for: ClassVar[str] = "small and medium budgets, any number of classes"

    ridge: Annotated[float, Field(gt=0, description="lambda")] = 1.0
    temperature: Temperature = 1.0
    features: Features = None
    steps: Steps = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features and posteriors, of the labelled set too."""
        return (
            features_need(self.features, self.steps),
            posterior_need(self.temperature, labelled=True),
        )

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:  # noqa: ARG002
        """Forward to 2K, back to K; scores are the first gains."""
        h_need, p_need = self.needs
        x = information_roots(pool.signal(p_need), pool.signal(h_need))
        y = information_roots(pool.labelled_signal(p_need), pool.labelled_signal(h_need))
        design = batch_design(x, y, budget, self.ridge)
        check_new(self.name, float(design.q.max()), self.ridge)
        scores = design.gains()
        positions = forward_backward(design, budget)
        return Choice(positions, scores, {"trace": design.trace()})

    def log_weights(self, pool: PoolView) -> Tensor:
        """Return the logarithms of the information tr I(x) = |phi|^2, (n,)."""
        h, p = (pool.signal(need) for need in self.needs)
        return information_roots(p, h).square().sum(dim=1).log()


def information_roots(p: Tensor, h: Tensor) -> Tensor:
    """Return phi = sqrt(q (1 - q)) h in double precision. p: (n, C), h: (n, ...): (n, d)."""
    rest = least_confidence(p.double())  # 1 - q, with the digits that a network that is sure leaves
    return (rest * (1 - rest)).clamp(min=0).sqrt()[:, None] * h.flatten(start_dim=1).double()


def batch_design(x: Tensor, y: Tensor, budget: int, ridge: float) -> RankOneDesign:
    """Return the design of a batch of `budget` among the vectors x, where y are labelled.

    x: (n, d), y: (m, d). M and F weigh them as the head of the module says.
    """
    n, m, d = len(x), len(y), x.shape[1]
    target = (x.T @ x + y.T @ y) / (n + m)
    base = ridge * torch.eye(d, dtype=x.dtype) + y.T @ y / (m + budget)
    return RankOneDesign(x * (budget / (m + budget)) ** 0.5, base, target)
