"""Warnings from the measured evidence, told in one line at the start of a run.

The figures are those of results/verdict, where every curve is; docs/verdict.md discusses them, and
`tests/test_evidence.py` holds each against the curves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from upslope.config.plan import Plan
from upslope.config.schema import Choice


@dataclass(frozen=True)
class Evidence:
    """A strategy that was behind random.

    points: of area behind random in `cell`, where it was worst. labels_per_class: up to so many
    labels per class the cells went. better: a strategy that was ahead of random in all of them.
    """

    strategy: str
    labels_per_class: int
    points: float
    cell: str
    better: str = "u-herding"


BEHIND = (
    Evidence("entropy-gradnorm", 20, 3.9, "sign-digits-low"),
    Evidence("expected-gradnorm", 20, 3.9, "sign-digits-low"),
    Evidence("egl", 20, 3.7, "sign-digits-low"),
)
"""expected-gradnorm is, by its defaults, the same number as entropy-gradnorm."""


def warnings(strategies: Iterable[Choice], plan: Plan) -> list[str]:
    """Return a line for each strategy that the evidence warns of at the budget of a plan.

    A strategy is warned of where its first selection comes with fewer labels per class than the
    evidence went up to.

    strategies: of the comparison.
    """
    if len(plan.budgets) < 2 or plan.classes < 2:
        return []
    per_class = plan.budgets[0] / plan.classes
    return [
        f"{choice.label}: with up to {known.labels_per_class} labels per class "
        f"{known.strategy} was behind random, by {known.points:g} points of area where it was "
        f"worst, and {known.better} ahead (docs/verdict.md, {known.cell}); this run begins with "
        f"{per_class:.2g}."
        for choice in strategies
        for known in BEHIND
        if choice.name == known.strategy
        and per_class < known.labels_per_class
        and not choice.options.get("criterion")
    ]
