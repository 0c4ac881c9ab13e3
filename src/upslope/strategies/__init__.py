"""Strategies: what to label next, from signals alone.

    strategy = build("egl", norm="tensor-sum")
    strategy.needs                            # the signals to compute
    strategy.select(pool, budget, rng).ids    # what to label

A new strategy is a file beside this one and a line in `STRATEGIES`.
"""

from __future__ import annotations

from typing import Any

from upslope import options
from upslope.strategies.base import QueryStrategy
from upslope.strategies.gradnorm import EGL, EGLRms, EntropyGradNorm, ExpectedGradNorm
from upslope.strategies.random import Random
from upslope.strategies.uncertainty import Entropy, LeastConfidence, Margin

STRATEGIES: dict[str, type[QueryStrategy]] = {
    "random": Random,
    "least-confidence": LeastConfidence,
    "margin": Margin,
    "entropy": Entropy,
    "entropy-gradnorm": EntropyGradNorm,
    "expected-gradnorm": ExpectedGradNorm,
    "egl": EGL,
    "egl-rms": EGLRms,
}


def build(name: str, **chosen: Any) -> QueryStrategy:
    """The strategy of this name, with these options.

    Raises:
        ConfigError: no such strategy, no such option, or a value that the option may not take.
    """
    return options.build(STRATEGIES, "strategy", name, chosen)


def describe() -> list[dict[str, str]]:
    """One row a strategy: name, reference, needs and costs in words, home, options."""
    return [
        {
            "name": name,
            "reference": cls.reference,
            "needs": cls.requires,
            "cost": cls.cost,
            "home": cls.home,
            "options": options.options_in_words(cls),
        }
        for name, cls in STRATEGIES.items()
    ]


__all__ = ["STRATEGIES", "QueryStrategy", "build", "describe"]
