"""Gradient norm with diversity: a batch that is both steep and spread (ours).

The highest gradient norms of a pool often belong to near-copies of one sample. Here a sample is
the gradient g over all parameters, of the entropy of its posterior or of its loss at the most
probable class, as a sketch that has its exact length and angles to within about 1/sqrt(dim).
Spread is

    k-means++   each drawn in proportion to its squared distance to the nearest drawn before
                (as BADGE does with last-layer gradients)
    dpp         the greedy mode of the determinantal process of kernel <g, g'>: the sample whose
                component orthogonal to those chosen is longest (Chen et al. 2018)
    power       no direction: drawn without replacement in proportion to |g|^beta
                (Kirsch et al. 2023)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from upslope.options import Parameters
from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.seeding import Family, Rows, k_means_plus_plus
from upslope.strategies.sketches import Dim, Loss, sketch_need

_SPAN = 1e-9
"""Share of a squared norm below which a vector lies in the span of others."""


@dataclass(frozen=True)
class GradNormDiverse(QueryStrategy):
    """A batch of long gradients of the whole network that differ."""

    name: ClassVar[str] = "gradnorm-diverse"
    reference: ClassVar[str] = "ours; Wang et al., AAAI 2022, with Ash et al., ICLR 2020"
    signal_cost: ClassVar[str] = "one forward and backward per candidate"
    cost: ClassVar[str] = "n K dim, dpp n K (K + dim); memory n dim, dpp n (K + dim)"
    best_for: ClassVar[str] = "large batches"

    loss: Loss = "entropy"
    spread: Annotated[
        Literal["k-means++", "dpp", "power"], Field(description="how the batch is spread")
    ] = "k-means++"
    beta: Annotated[float, Field(ge=0, description="exponent of spread=power")] = 1.0
    dim: Dim = 512
    parameters: Parameters = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Sketches of the gradients."""
        return (sketch_need(self.loss, self.dim, self.parameters),)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """A spread batch; scores are the gradient norms."""
        vectors = Rows(pool.signal(self.needs[0]).double())
        norms = vectors.squared_norms().sqrt()
        if self.spread == "power":
            return Choice(power_draw(norms, self.beta, budget, rng), norms)
        spread = determinantal if self.spread == "dpp" else k_means_plus_plus
        return Choice(spread(vectors, budget, rng), norms)

    def log_weights(self, pool: PoolView) -> Tensor:
        """Return the logarithms of the gradient norms, (n,), by the power with which these decide:
        what `power` draws by, and squares, as the longest are taken first by `dpp`."""
        exponent = {"power": self.beta, "dpp": 2.0, "k-means++": 1.0}[self.spread]
        norms = Rows(pool.signal(self.needs[0]).double()).squared_norms().sqrt()
        return exponent * norms.clamp(min=1e-300).log()


def power_draw(s: Tensor, beta: float, budget: int, rng: torch.Generator) -> list[int]:
    """Without replacement, in proportion to s^beta: the top of beta log s + Gumbel noise."""
    noise = torch.rand(len(s), generator=rng, dtype=torch.float64)
    gumbel = -(-noise.clamp(min=1e-300).log()).clamp(min=1e-300).log()
    # A sample without gradient comes after all others, yet in random order.
    keys = beta * s.clamp(min=1e-300).log() + gumbel
    return keys.argsort(descending=True, stable=True)[:budget].tolist()


def determinantal(vectors: Family, budget: int, rng: torch.Generator) -> list[int]:  # noqa: ARG001
    """Greedy maximisation of the determinant of the Gram matrix of the chosen.

    By incremental Cholesky: left holds |component orthogonal to those chosen|^2. Where nothing is
    left, because the chosen span all, the longest vectors follow.
    """
    norms = vectors.squared_norms()
    left = norms.clone()
    rows = torch.zeros(budget, len(norms), dtype=norms.dtype)
    positions: list[int] = []
    for k in range(budget):
        best = int(left.argmax())
        if left[best] <= 0:
            rest = norms.index_fill(0, torch.tensor(positions, dtype=torch.int64), -1.0)
            more = rest.argsort(descending=True, stable=True)[: budget - k]
            return positions + more.tolist()
        projection = vectors.products(best) - rows[:k].T @ rows[:k, best]
        rows[k] = projection / left[best].sqrt()
        left = left - rows[k].square()
        # Of a vector that the chosen span, this is what rounding leaves of its own length.
        left[left <= _SPAN * norms] = 0.0
        positions.append(best)
        left[positions] = -1.0
    return positions
