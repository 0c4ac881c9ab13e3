"""BatchBALD: the batch whose labels together tell most about the weights (Kirsch et al. 2019).

BALD adds up the information of each label as if labels told different things. BatchBALD takes it
jointly, I(y_1 ... y_K ; w), greedily: the gain of a sample x after b others is

    I(y_x ; w | y_1 ... y_b)  =  sum_m pi_m H[ sum_t W_mt p_t(x) ]  -  (1/T) sum_t H[p_t(x)]

over the possible answers m = (y_1 ... y_b), pi_m their probability, and W_mt that of the network t
given those answers. All answers are listed while there are at most `answers` of them; then that
many are drawn, and each draws its own next answer. W is all that is kept: rows that sum to 1, so
that no product of probabilities underflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from upslope.pool import Need, PoolView
from upslope.posterior import entropy, in_double
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.greedy import lazy_greedy

ENTRIES = 2**23
"""Numbers of the posteriors after answers that are computed at once: 64 MB."""


@dataclass(frozen=True)
class BatchBald(QueryStrategy):
    """BALD of the batch, not of each of its samples."""

    name: ClassVar[str] = "batch-bald"
    reference: ClassVar[str] = "Kirsch, van Amersfoort and Gal, NeurIPS 2019"
    signal_cost: ClassVar[str] = "a network with dropout; T forwards of what lies behind it"
    cost: ClassVar[str] = "answers T C for each gain recomputed; memory n T C"
    best_for: ClassVar[str] = "budgets of tens a cycle"

    passes: Annotated[int, Field(ge=2, description="T, the number of passes")] = 100
    answers: Annotated[int, Field(ge=1, description="joint answers that are listed or drawn")] = (
        1000
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the need for T posteriors per sample."""
        return (Need.of("mc-posteriors", passes=self.passes),)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """The candidate of largest gain, `budget` times; scores are BALD's."""
        p = pool.signal(self.needs[0])  # (n, T, C)
        parts = [in_double(part) for part in p.split(256)]  # type: ignore[no-untyped-call]
        means = torch.cat([part.mean(dim=1) for part in parts])
        mean_entropies = torch.cat([entropy(part, -1).mean(dim=1) for part in parts])
        joint = LabelConfigurations.none(p.shape[1])

        def gains_of(rows: Tensor) -> Tensor:
            return (joint.entropy(p[rows]) - mean_entropies[rows]).clamp_(min=0)

        def take(row: int) -> None:
            joint.extend(p[row], self.answers, rng)

        scores = (entropy(means, -1) - mean_entropies).clamp_(min=0)
        most = min(256, max(1, ENTRIES // (self.answers * p.shape[2])))
        positions = lazy_greedy(scores, budget, gains_of, take, most)
        return Choice(positions, scores.float())


@dataclass
class LabelConfigurations:
    """Answers to the samples so far. pi: (M,) their probability; w: (M, T), given them, of each
    network. are_drawn: each stands for an equal share of all; before, all are listed."""

    pi: Tensor
    w: Tensor
    are_drawn: bool = False

    @classmethod
    def none(cls, passes: int) -> LabelConfigurations:
        """Return the initial state: one empty configuration, of probability 1."""
        return cls(torch.ones(1).double(), torch.full((1, passes), 1 / passes, dtype=torch.float64))

    def entropy(self, p: Tensor) -> Tensor:
        """Expected entropy of the next answer: sum_m pi_m H[y_x | m]. p: (b, T, C) -> (b,)."""
        posteriors = torch.einsum("mt,btc->bmc", self.w, in_double(p))
        return entropy(posteriors, -1) @ self.pi

    def extend(self, p: Tensor, most: int, rng: torch.Generator) -> None:
        """Add the answers to one sample more. p: (T, C)."""
        p = in_double(p)
        posteriors = self.w @ p  # (M, C)
        if posteriors.numel() <= most:
            self.pi = (self.pi[:, None] * posteriors).flatten()
            w = (self.w[:, None] * p.T).flatten(0, 1)  # (M C, T)
        else:
            rows = torch.arange(len(self.pi))
            if not self.are_drawn:
                rows = torch.multinomial(self.pi, most, replacement=True, generator=rng)
                self.are_drawn = True
            labels = torch.multinomial(posteriors[rows], 1, generator=rng).flatten()
            self.pi = torch.full((len(rows),), 1 / len(rows), dtype=self.pi.dtype)
            w = self.w[rows] * p.T[labels]
        total = w.sum(dim=1, keepdim=True)
        # An answer that no network gives has probability 0: which network gave it is moot.
        self.w = torch.where(total > 0, w / total, 1 / w.shape[1])
