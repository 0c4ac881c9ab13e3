"""Strategies: what to label next, from signals alone.

    strategy = build("egl", norm="tensor-sum")
    strategy.needs                            # the signals to compute
    strategy.select(pool, budget, rng).ids    # what to label

A new strategy is a file beside this one and a line in `REGISTRY`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from upslope import registry
from upslope.strategies.adversarial import SRAAL, VAAL
from upslope.strategies.badge import Badge
from upslope.strategies.bait import Bait
from upslope.strategies.base import QueryStrategy
from upslope.strategies.batch_bald import BatchBald
from upslope.strategies.binary_bait import BinaryBait
from upslope.strategies.committee import QBC
from upslope.strategies.core_set import CoreSet, RobustCoreSet
from upslope.strategies.coverage import FacilityLocation, MaxHerding, ProbCover, UHerding
from upslope.strategies.dcom import DCoM
from upslope.strategies.diverse import GradNormDiverse
from upslope.strategies.dropquery import DropQuery
from upslope.strategies.emcm import EMCM
from upslope.strategies.foreground import ForegroundRandom
from upslope.strategies.gcn import CoreGCN, UncertainGCN
from upslope.strategies.gradnorm import EGL, EGLRms, EntropyGradNorm, ExpectedGradNorm
from upslope.strategies.isal import ISAL
from upslope.strategies.lcmd import LCMD
from upslope.strategies.learning_loss import LL4AL
from upslope.strategies.mc_dropout import Bald, McEntropy, MeanStd, VariationRatio
from upslope.strategies.oracle import Oracle
from upslope.strategies.power import Power
from upslope.strategies.random import Random
from upslope.strategies.refine import Refine
from upslope.strategies.typiclust import TCM, TypiClust
from upslope.strategies.uncertainty import Entropy, LeastConfidence, Margin

REGISTRY: dict[str, type[QueryStrategy]] = {
    "random": Random,
    "foreground-random": ForegroundRandom,
    "least-confidence": LeastConfidence,
    "margin": Margin,
    "entropy": Entropy,
    "entropy-gradnorm": EntropyGradNorm,
    "expected-gradnorm": ExpectedGradNorm,
    "egl": EGL,
    "egl-rms": EGLRms,
    "gradnorm-diverse": GradNormDiverse,
    "bald": Bald,
    "mc-entropy": McEntropy,
    "variation-ratio": VariationRatio,
    "mean-std": MeanStd,
    "core-set": CoreSet,
    "core-set-robust": RobustCoreSet,
    "ll4al": LL4AL,
    "vaal": VAAL,
    "sraal": SRAAL,
    "qbc": QBC,
    "emcm": EMCM,
    "isal": ISAL,
    "uncertain-gcn": UncertainGCN,
    "core-gcn": CoreGCN,
    "badge": Badge,
    "bait": Bait,
    "binary-bait": BinaryBait,
    "lcmd": LCMD,
    "batch-bald": BatchBald,
    "typiclust": TypiClust,
    "tcm": TCM,
    "prob-cover": ProbCover,
    "max-herding": MaxHerding,
    "u-herding": UHerding,
    "facility-location": FacilityLocation,
    "dropquery": DropQuery,
    "dcom": DCoM,
    "power": Power,
    "refine": Refine,
    "oracle": Oracle,
}


@dataclass(frozen=True)
class StrategyDescription(registry.Description):
    """One strategy as `upslope list strategies` shows it.

    reference: where it was published. needs: what it costs to get its signals. cost: of the
    selection. best_for: the budgets where it is at its best.
    """

    reference: str
    needs: str
    cost: str
    best_for: str


def build(name: str, **options: Any) -> QueryStrategy:
    """The strategy of this name, with these options.

    Raises:
        ConfigError: no such strategy, no such option, or a value that the option may not take.

    Example:
        >>> import torch
        >>> from upslope.pool import PoolView
        >>> strategy = build("margin")
        >>> margins = torch.tensor([0.1, 0.9, 0.5])  # higher is less certain
        >>> pool = PoolView(["a", "b", "c"], {strategy.needs[0]: margins})
        >>> strategy.select(pool, 2, torch.Generator()).ids
        ('b', 'c')
    """
    strategy = registry.lookup("strategy", REGISTRY, name)
    valid_options = registry.check_options(f"strategy {name!r}", strategy, options, ())
    return cast(QueryStrategy, strategy(**valid_options))


def describe() -> list[StrategyDescription]:
    """Return a row for every strategy, in the order of `REGISTRY`."""
    rows = [(cls, registry.describe(name, cls, ())) for name, cls in REGISTRY.items()]
    return [
        StrategyDescription(
            row.name,
            row.summary,
            row.options,
            cls.reference,
            cls.signal_cost,
            cls.cost,
            cls.best_for,
        )
        for cls, row in rows
    ]


__all__ = ["REGISTRY", "QueryStrategy", "StrategyDescription", "build", "describe"]
