"""The measured evidence: warnings at the start of a run, and what strategies are best for.

The figures are those of results/verdict, where every curve is; docs/verdict.md discusses them, and
`tests/test_evidence.py` holds each against the curves.
"""

from __future__ import annotations

from dataclasses import dataclass

from upslope.config.plan import Plan
from upslope.config.schema import Config

ONE_CLASS = ("classification", "text-classification")
"""The tasks that were measured: each sample has one class."""


@dataclass(frozen=True)
class Evidence:
    """A strategy that was behind random in half of the cells of few labels, or in more.

    behind: in so many of the `CELLS` and `CONFIRMATION` its mean area was less than random's.
    points: of area behind random in `cell`, where it was worst. labels_per_class: up to so many
    labels per class the cells went. better: a strategy that was ahead of random in all of them.
    """

    strategy: str
    behind: int
    points: float
    cell: str
    labels_per_class: int = 20
    better: str = "u-herding"


CELLS = ("cifar10-low", "fashion-mnist-low", "sign-digits-low")
CONFIRMATION = (
    "confirm-breast-cancer",
    "confirm-digits",
    "confirm-imbalanced",
    "confirm-near-copies",
    "confirm-people",
    "confirm-tiny-imagenet",
    "confirm-wine",
)
"""Cells on which no setting and no rule was chosen."""
BEHIND = (
    Evidence("entropy-gradnorm", 7, 5.4, "confirm-digits"),
    Evidence("expected-gradnorm", 7, 5.4, "confirm-digits"),
    Evidence("egl", 5, 4.4, "confirm-near-copies"),
)
"""expected-gradnorm is, by its defaults, the same number as entropy-gradnorm."""


@dataclass(frozen=True)
class MeanGain:
    """A strategy against random in the cells of few labels, all on frozen features.

    least, most: points of area ahead of random, the mean over seeds, in the worst cell and the
    best. shown: in how many of the `CELLS` by Holm's p. note: whatever else a reader should know.
    """

    least: float
    most: float
    shown: int
    note: str = ""

    def __str__(self) -> str:
        where = "2 to 20 labels per class on frozen features"
        if self.most < 0:
            return (
                f"no budget that was measured: {-self.most:g} to {-self.least:g} points of area "
                f"behind random with {where}, shown in {self.shown} of {len(CELLS)} data sets "
                f"(docs/verdict.md){self.note}"
            )
        return (
            f"{where}: {self.least:g} to {self.most:g} points of area ahead of random, shown in "
            f"{self.shown} of {len(CELLS)} data sets (docs/verdict.md){self.note}"
        )


RARE_CLASSES = "; ahead where one class is twenty times as common as another"
EVIDENCE = {
    "u-herding": MeanGain(3.3, 4.1, 3, "; the first of all measured in each"),
    "binary-bait": MeanGain(2.9, 3.3, 3, "; two fifths of u-herding's time"),
    "max-herding": MeanGain(1.1, 3.6, 3),
    "badge": MeanGain(1.2, 2.1, 3),
    "margin": MeanGain(0.7, 2.6, 2, "; one forward per candidate"),
    "entropy-gradnorm": MeanGain(-4.4, -0.8, 2, RARE_CLASSES),
    "expected-gradnorm": MeanGain(-4.4, -0.8, 2, RARE_CLASSES),
    "egl": MeanGain(-4.1, -0.5, 2, RARE_CLASSES),
}
"""What `upslope list NAME` says a strategy is best for; of others it tells what was published."""


def warnings(config: Config, plan: Plan) -> list[str]:
    """Return a line for each strategy that the evidence warns of at the budget of a plan.

    A strategy is warned of where its first selection comes with fewer labels per class than the
    evidence went up to, and each sample has one class: nothing else was measured.

    config: of the comparison. plan: its sizes.
    """
    if len(plan.budgets) < 2 or plan.classes < 2 or config.task.name not in ONE_CLASS:
        return []
    per_class = plan.budgets[0] / plan.classes
    return [
        f"{choice.label}: with up to {row.labels_per_class} labels per class {row.strategy} was "
        f"behind random in {row.behind} of {len(CELLS + CONFIRMATION)} cells, by "
        f"{row.points:g} points of area where it was worst, and {row.better} ahead in all "
        f"(docs/verdict.md, {row.cell}); this run begins with {per_class:.2g}."
        for choice in config.strategies
        for row in BEHIND
        if choice.name == row.strategy
        and per_class < row.labels_per_class
        and not choice.options.get("criterion")
    ]
