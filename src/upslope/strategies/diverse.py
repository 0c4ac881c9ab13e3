"""Gradient norm with diversity: a batch that is both steep and spread (ours).

The highest gradient norms of a pool often belong to near-copies of one sample. Here a sample is a
vector g whose length s is its gradient norm over all chosen parameters, and whose direction is that
of its gradient by the last weight matrix, a h^T, with h the features and

    entropy-gradnorm   a = p (log p + H)     the gradient of the entropy by the logits
    egl                a = p - e_y           that of the loss at y, the most probable class

so that <g, g'> = s s' cos(a, a') cos(h, h'), without a gradient ever written down. Spread is

    k-means++   each drawn in proportion to its squared distance to the nearest drawn before
                (as BADGE does with last-layer gradients)
    dpp         the greedy mode of the determinantal process of kernel <g, g'>: the sample whose
                component orthogonal to those chosen is longest (Chen et al. 2018)
    power       no direction: drawn without replacement in proportion to s^beta (Kirsch et al. 2023)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.seeding import OuterProducts, k_means_plus_plus


@dataclass(frozen=True)
class GradNormDiverse(QueryStrategy):
    """A batch of long gradients that differ."""

    name: ClassVar[str] = "gradnorm-diverse"
    reference: ClassVar[str] = "ours; Wang et al., AAAI 2022, with Ash et al., ICLR 2020"
    requires: ClassVar[str] = "one forward and backward a candidate (egl: up to C backwards)"
    cost: ClassVar[str] = "n K (C + d), dpp n K^2; memory n (C + d), dpp n K"
    home: ClassVar[str] = "large batches"

    score: Annotated[
        Literal["entropy-gradnorm", "egl"], Field(description="which gradient is spread")
    ] = "entropy-gradnorm"
    spread: Annotated[
        Literal["k-means++", "dpp", "power"], Field(description="how the batch is spread")
    ] = "k-means++"
    beta: Annotated[float, Field(ge=0, description="exponent of spread=power")] = 1.0
    norm: Annotated[
        Literal["global", "tensor-sum"],
        Field(description="norm of the whole gradient, or sum over parameter tensors of theirs"),
    ] = "global"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The gradient norm and, unless spread=power, posteriors and features."""
        norm: Need = (
            Need.of("gradnorm", loss="entropy", norm=self.norm, parameters=None)
            if self.score == "entropy-gradnorm"
            else Need.of("egl", kind="mean", share=1.0, norm=self.norm, parameters=None)
        )
        directions = (Need.of("probabilities"), Need.of("features"))
        return (norm,) if self.spread == "power" else (norm, *directions)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """A spread batch; scores are the gradient norms."""
        s = pool.signal(self.needs[0]).double()
        if self.spread == "power":
            return Choice(power_draw(s, self.beta, budget, rng), s)
        p, h = (pool.signal(need).double() for need in self.needs[1:])
        vectors = OuterProducts(s[:, None] * F.normalize(self.logit_gradient(p)), F.normalize(h))
        spread = determinantal if self.spread == "dpp" else k_means_plus_plus
        return Choice(spread(vectors, budget, rng), s)

    def logit_gradient(self, p: Tensor) -> Tensor:
        """a: (n, C)."""
        if self.score == "egl":
            return p - F.one_hot(p.argmax(dim=1), p.shape[1])
        entropy = -torch.xlogy(p, p).sum(dim=1, keepdim=True)
        return torch.xlogy(p, p) + p * entropy


def power_draw(s: Tensor, beta: float, budget: int, rng: torch.Generator) -> list[int]:
    """Without replacement, in proportion to s^beta: the top of beta log s + Gumbel noise."""
    noise = torch.rand(len(s), generator=rng, dtype=torch.float64)
    gumbel = -(-noise.clamp(min=1e-300).log()).clamp(min=1e-300).log()
    # A sample without gradient comes after all others, yet in random order.
    keys = beta * s.clamp(min=1e-300).log() + gumbel
    return keys.argsort(descending=True, stable=True)[:budget].tolist()


def determinantal(vectors: OuterProducts, budget: int, rng: torch.Generator) -> list[int]:  # noqa: ARG001
    """Greedy maximisation of the determinant of the Gram matrix of the chosen.

    By incremental Cholesky: left holds |component orthogonal to those chosen|^2. Where nothing is
    left, because the chosen span all, the longest vectors follow.
    """
    norms = vectors.squared_norms()
    left = norms.clone()
    rows = torch.zeros(budget, len(norms), dtype=norms.dtype)
    chosen: list[int] = []
    for k in range(budget):
        best = int(left.argmax())
        if left[best] <= 1e-9 * norms.max():
            rest = norms.index_fill(0, torch.tensor(chosen, dtype=torch.int64), -1.0)
            more = rest.argsort(descending=True, stable=True)[: budget - k]
            return chosen + more.tolist()
        projected = vectors.products(best) - rows[:k].T @ rows[:k, best]
        rows[k] = projected / left[best].sqrt()
        left = (left - rows[k].square()).clamp(min=0)
        left[best] = -1.0
        left[chosen] = -1.0
        chosen.append(best)
    return chosen
