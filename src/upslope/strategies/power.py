"""Power sampling by any score, with an exponent that rises and strata by class (ClaSP PE).

The highest scores of a pool are alike, and few labels make them unsure. So the batch is drawn,
being the first K by

    beta log s(x) + G(x),   G standard Gumbel noise,   beta = exponent + rise m / K

which draws without replacement in proportion to s^beta (Kirsch et al. 2023); m labelled samples and
K the budget make beta rise from batch to batch, from nearly uniform to the top of the score. With
strata the classes take turns, in random order: each takes the first sample left in which it is the
predicted class (of masks: predicted anywhere), so that rare classes are asked as often as common
ones. Predictive entropy with both is ClaSP PE (Lueth et al. 2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from upslope.errors import SelectionError
from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy, TopStrategy
from upslope.strategies.committee import QBC
from upslope.strategies.diverse import power_draw
from upslope.strategies.gradnorm import EGL, EGLRms, EntropyGradNorm, ExpectedGradNorm
from upslope.strategies.mc_dropout import Bald, McEntropy, MeanStd, VariationRatio
from upslope.strategies.uncertainty import Entropy, LeastConfidence, Margin

SCORES: dict[str, type[TopStrategy]] = {
    kind.name: kind
    for kind in (
        LeastConfidence, Margin, Entropy, EntropyGradNorm, ExpectedGradNorm, EGL, EGLRms,
        Bald, McEntropy, VariationRatio, MeanStd, QBC,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Power(QueryStrategy):
    """Drawn by a power of a score that rises from batch to batch, classes taking turns."""

    name: ClassVar[str] = "power"
    reference: ClassVar[str] = "Lueth et al. 2026 (ClaSP PE); Kirsch et al. 2023"
    signal_cost: ClassVar[str] = "what the score requires, and one forward per candidate"
    cost: ClassVar[str] = "n log n + K n C"
    best_for: ClassVar[str] = "masks and volumes; large batches; rare classes"

    score: Annotated[
        Literal[
            "least-confidence", "margin", "entropy", "entropy-gradnorm", "expected-gradnorm",
            "egl", "egl-rms", "bald", "mc-entropy", "variation-ratio", "mean-std", "qbc",
        ],
        Field(description="the strategy whose score is drawn by"),
    ] = "entropy"  # fmt: skip
    exponent: Annotated[float, Field(ge=0, description="exponent before the first label")] = 1.0
    rise: Annotated[float, Field(ge=0, description="added to it with every batch labelled")] = 1.0
    strata: Annotated[bool, Field(description="predicted classes take turns")] = True

    @property
    def scorer(self) -> TopStrategy:
        """The strategy of the score, with its own defaults."""
        return SCORES[self.score]()

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the score needs, and the predicted share of each class for strata."""
        classes = (Need.of("predicted-classes"),) if self.strata else ()
        return (*self.scorer.needs, *classes)

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """Drawn in the order of the noised score, class by class; scores are those of the score.

        Raises:
            SelectionError: a score below 0, of which no power is taken.
        """
        scores = self.scorer.score(pool).double()
        if bool((scores < 0).any()):
            raise SelectionError(
                f"Expected scores of {self.score} to be 0 or more, so that their powers can be "
                f"drawn by, but the lowest is {float(scores.min()):g}. Take another score."
            )
        beta = self.exponent + self.rise * len(pool.labelled) / budget
        order = power_draw(scores, beta, len(pool), rng)
        positions = order[:budget]
        if self.strata:
            positions = in_turn(order, pool.signal(self.needs[-1]) > 0, budget, rng)
        return Choice(positions, scores, {"beta": beta})


def in_turn(order: list[int], members: Tensor, budget: int, rng: torch.Generator) -> list[int]:
    """Return `budget` samples: the classes take turns, each taking its first left in `order`.

    members: (n, C) booleans. A class without samples left is passed; once all are, the order
    alone decides.
    """
    classes = torch.randperm(members.shape[1], generator=rng).tolist()
    rows = torch.tensor(order)
    queues = [iter(rows[members[rows, c]].tolist()) for c in classes]
    ids_in_turn: dict[int, None] = {}
    while queues and len(ids_in_turn) < budget:
        left = []
        for queue in queues:
            best = next((i for i in queue if i not in ids_in_turn), None)
            if best is not None and len(ids_in_turn) < budget:
                ids_in_turn[best] = None
                left.append(queue)
        queues = left
    rest = [i for i in order if i not in ids_in_turn]
    return [*ids_in_turn, *rest[: budget - len(ids_in_turn)]]
