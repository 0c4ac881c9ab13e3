"""From curves to the figures that a table shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from upslope.errors import RunError
from upslope.evaluation import (
    Interval,
    PairedResult,
    area,
    have_spread,
    holm,
    labels_to_reach,
    mean_interval,
    paired_comparison,
    told_interval,
)
from upslope.registry import did_you_mean
from upslope.report.look import Look
from upslope.report.study import Array, Study

LEVEL = 0.05
"""A difference is called one where Holm's adjusted p of the paired t test is below this."""


@dataclass(frozen=True)
class Comparison:
    """One strategy against the reference, on the area under the budget curve."""

    seeds: tuple[int, ...]
    """The seeds that both have."""
    area: PairedResult
    p_adjusted: float
    """Holm's correction of `PairedResult.p` over all the strategies compared."""
    curve: Interval
    """The paired difference at each budget, (n_budgets,)."""
    labels_needed: float
    """Labels at which the mean curve reaches the reference's final mean; NaN where it does not."""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown`, or `not tested` with a single seed."""
        if np.isnan(self.p_adjusted):
            return "not tested"
        if self.p_adjusted >= LEVEL:
            return "no difference shown"
        return "better" if float(self.area.difference.mean) > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """One strategy: means over its complete seeds. Figures are shares, times seconds per run.

    curve: the mean at each budget, with its interval. area: under the curve. selecting_seconds,
    training_seconds: per run.
    """

    strategy: str
    seeds: tuple[int, ...]
    curve: Interval
    """Its interval is NaN with fewer than `INTERVAL_SEEDS`, as that of `area`."""
    area: Interval
    selecting_seconds: float
    training_seconds: float
    comparison: Comparison | None
    """None for the reference itself, and where no seed is shared with it."""


@dataclass(frozen=True)
class Summary:
    """Everything that tables, figures and the page show.

    study: the runs. budgets: labels at each cycle. reference: what the others are compared with.
    rows: one per strategy.
    """

    study: Study
    budgets: tuple[int, ...]
    reference: str | None
    rows: tuple[Row, ...]
    slots: Mapping[str, int] = field(default_factory=dict)
    """strategy -> slot of its colour; `look.GREY` for grey."""
    title: str = ""
    """Of the report that this one takes the place of."""

    @property
    def seeds(self) -> int:
        """The fewest seeds that any strategy has."""
        return min(len(row.seeds) for row in self.rows)


def summarise(study: Study, reference: str | None = None, look: Look | None = None) -> Summary:
    """Return the statistics of every strategy with a complete run.

    Args:
        study: the runs.
        reference: what the others are compared with; `random` where it is there, else nothing.
        look: of an earlier report, whose order and colours stay.

    Raises:
        RunError: no complete run; runs that do not belong together; an unknown reference.
    """
    budgets = study.budgets
    look = look or Look()
    names = look.sort(name for name in study.strategies if study.complete(name))
    if reference is None and "random" in names:
        reference = "random"
    if reference is not None and reference not in names:
        raise RunError(
            "Expected the reference to be one of the strategies with a complete run, "
            f"{', '.join(names)}, but got {reference!r}{did_you_mean(reference, names) or '.'}"
        )
    names.sort(key=lambda name: name != reference)  # the reference first, else in the given order
    comparisons = {name: _compare(study, name, reference) for name in names}
    comparable = [name for name, comparison in comparisons.items() if comparison is not None]
    p_values = holm(
        [comparison.area.p for comparison in comparisons.values() if comparison is not None]
    )
    p_adjusted = dict(zip(comparable, p_values.tolist(), strict=True))
    rows = []
    for name in names:
        runs = study.complete(name)
        curves = study.curves(name, list(runs))
        areas = areas_of(budgets, curves)
        comparison = comparisons[name]
        rows.append(
            Row(
                strategy=name,
                seeds=tuple(runs),
                curve=told_interval(mean_interval(curves), have_spread(curves)),
                area=told_interval(mean_interval(areas), have_spread(areas)),
                selecting_seconds=float(np.mean([r.selecting_seconds for r in runs.values()])),
                training_seconds=float(np.mean([r.training_seconds for r in runs.values()])),
                comparison=None
                if comparison is None
                else replace(comparison, p_adjusted=p_adjusted[name]),
            )
        )
    return Summary(
        study, budgets, reference, tuple(rows), look.with_names(names, reference), look.title
    )


def summarise_sets(
    studies: Sequence[Study], reference: str | None = None, look: Look | None = None
) -> tuple[Summary, ...]:
    """Return the statistics of several data sets, a strategy's colour and place alike in all.

    studies: one per data set. reference, look: as for `summarise`.

    Raises:
        RunError: as `summarise` does.
    """
    look = look or Look()
    names = list(dict.fromkeys(name for study in studies for name in study.strategies))
    first = reference or ("random" if "random" in names else None)
    common_look = Look(look.title, look.with_names(look.sort(names), first))
    return tuple(summarise(study, reference, common_look) for study in studies)


def areas_of(budgets: Sequence[int], curves: Array) -> Array:
    """Return the area under each curve, (n_seeds,); of a single budget the figure itself.

    budgets: labels at each cycle. curves: (n_seeds, n_budgets).
    """
    return area(budgets, curves) if len(budgets) > 1 else curves[:, 0]


def _compare(study: Study, name: str, reference: str | None) -> Comparison | None:
    if reference is None or name == reference:
        return None
    seeds = [seed for seed in study.complete(name) if seed in study.complete(reference)]
    if not seeds:
        return None
    ours, theirs = study.curves(name, seeds), study.curves(reference, seeds)
    budgets = study.budgets
    areas = paired_comparison(areas_of(budgets, ours), areas_of(budgets, theirs))
    return Comparison(
        seeds=tuple(seeds),
        area=replace(areas, difference=told_interval(areas.difference, areas.has_spread)),
        p_adjusted=float("nan"),
        curve=told_interval(mean_interval(ours - theirs)),
        labels_needed=(
            labels_to_reach(budgets, ours.mean(axis=0), float(theirs.mean(axis=0)[-1]))
            if len(budgets) > 1
            else float("nan")
        ),
    )
