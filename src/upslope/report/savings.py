"""How many labels each strategy saves against the reference; the page makes hours and money of it.

The figure to reach is the reference's at half of, and at all of, its labels. Seconds per label and
the wage are assumptions of the reader's: they are stated wherever they are used, and the page lets
them be changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from upslope.errors import ConfigError
from upslope.evaluation import INTERVAL_SEEDS, LabelsNeeded, labels_needed
from upslope.report.summary import Row, Summary

SHARES = (0.5, 1.0)
"""Of the reference's last budget: where its figure is the one to reach."""


@dataclass(frozen=True)
class Costs:
    """What labelling costs.

    seconds_per_label: a person's time for one label. wage: per hour. currency: as it is written
    behind the amounts.
    """

    seconds_per_label: float = 10.0
    wage: float = 20.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name, value in (("seconds_per_label", self.seconds_per_label), ("wage", self.wage)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"Expected `{name}` to be a number of at least 0 but got {value}. Give the "
                    "seconds a person takes per label, and what an hour costs."
                )


@dataclass(frozen=True)
class SavedLabels:
    """share: of the reference's last budget. needed: the labels that the strategy takes for the
    figure which the reference has there. told: there are seeds enough to tell an interval."""

    share: float
    needed: LabelsNeeded
    told: bool

    @property
    def reached(self) -> bool:
        """Return whether the mean difference gets to 0 within the budgets."""
        return math.isfinite(self.needed.labels)

    @property
    def saved(self) -> float:
        """Return the labels saved; below 0 where more are needed than the reference takes."""
        return self.needed.reference - self.needed.labels


def savings(summary: Summary, row: Row) -> tuple[SavedLabels, ...]:
    """Return what a strategy saves at each of `SHARES`; empty without a comparison.

    A share that lies before the first budget is left out: nothing is known about it.
    """
    budgets = summary.budgets
    if row.comparison is None or summary.reference is None or len(budgets) < 2:
        return ()
    seeds: Sequence[int] = row.comparison.seeds
    ours = summary.study.curves(row.strategy, seeds)
    theirs = summary.study.curves(summary.reference, seeds)
    return tuple(
        SavedLabels(
            share,
            labels_needed(budgets, ours, theirs, share),
            len(seeds) >= INTERVAL_SEEDS,
        )
        for share in SHARES
        if share * budgets[-1] >= budgets[0]
    )
