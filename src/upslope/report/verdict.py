"""The sentence with which a report begins, on one data set or on several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from upslope.counts import format_count
from upslope.evaluation import Equivalence, equivalence
from upslope.evaluation.curves import Array
from upslope.report import tables
from upslope.report.savings import SavedLabels, savings
from upslope.report.standing import Ranks
from upslope.report.summary import LEVEL, Row, Summary, areas_of

MARGIN = 0.01
"""Half the width of the region of practical equivalence: one point of area."""


def equality(summary: Summary, row: Row) -> Equivalence | None:
    """Return the tests of "equal" and "not worse" within one point of area, against the reference.

    None without a comparison.
    """
    if row.comparison is None or summary.reference is None:
        return None
    seeds = row.comparison.seeds
    ours, theirs = (
        areas_of(summary.budgets, summary.study.curves(name, seeds))
        for name in (row.strategy, summary.reference)
    )
    return equivalence(ours - theirs, MARGIN)


def verdict(summary: Summary) -> str:
    """Return the sentence on one data set: which strategy is ahead, by how much, what it saves."""
    rows = [row for row in summary.rows if row.comparison is not None]
    if summary.reference is None or not rows:
        sentence = _tell_largest_area(summary)
    elif len(_select_rows(rows, "not tested")) == len(rows):
        sentence = _tell_one_seed(summary.reference, max(rows, key=_gain))
    elif _select_rows(rows, "better"):
        sentence = _tell_some_better(summary, rows)
    else:
        sentence = _tell_none_better(summary, rows)
    return f"On {summary.study.name}, {sentence}" if summary.study.name else sentence


def _select_rows(rows: Sequence[Row], verdict: str) -> list[Row]:
    return [row for row in rows if row.comparison and row.comparison.verdict == verdict]


def _tell_largest_area(summary: Summary) -> str:
    best = max(summary.rows, key=lambda row: float(row.area.mean))
    if summary.reference is None:
        why = "there is no reference"
    elif len(summary.rows) == 1:
        why = "there is no other strategy"
    else:
        why = f"no strategy has a seed in common with {summary.reference}"
    return (
        f"{best.strategy} has the largest mean area, {100 * float(best.area.mean):.1f}; nothing "
        f"was tested, as {why}."
    )


def _tell_one_seed(reference: str, best: Row) -> str:
    if _gain(best) == 0:
        return f"{best.strategy} has the area of {reference} in one seed: nothing can be tested."
    return (
        f"{best.strategy} is {_points(best)} of area "
        f"{'ahead of' if _gain(best) > 0 else 'behind'} {reference} in one seed: nothing can be "
        "tested."
    )


def _tell_none_better(summary: Summary, rows: Sequence[Row]) -> str:
    worse = _select_rows(rows, "worse")
    shown_worse = f", and {_join_names(worse)} shown worse" if worse else ""
    return (
        f"{'no' if summary.study.name else 'No'} strategy is shown to be better than "
        f"{summary.reference}{shown_worse} ({_seeds(rows)})."
    )


def _tell_some_better(summary: Summary, rows: Sequence[Row]) -> str:
    best, *others = sorted(_select_rows(rows, "better"), key=_gain, reverse=True)
    worse = _select_rows(rows, "worse")
    return (
        f"{best.strategy} is ahead of {summary.reference} by {_points(best)} of area "
        f"({_p(best)}, {_seeds([best])}){_saving_words(summary, best)}"
        f"{f'; {_join_names(others)} better too' if others else ''}"
        f"{f'; {_join_names(worse)} worse' if worse else ''}."
    )


def verdict_over(summaries: Sequence[Summary], ranks: Ranks | None) -> str:
    """Return the sentence on several data sets; ranks: over them, if there are any."""
    reference = summaries[0].reference
    count = format_count(len(summaries), "data set")
    if ranks is None:
        why = "no three strategies have runs of one seed in each of them"
        return f"Over {count}: nothing can be ranked, as {why}."
    order = np.argsort(ranks.ranking.ranks, kind="stable")
    best = ranks.names[int(order[0])]
    said = f"Over {count}, {best} has the best mean rank ({ranks.ranking.ranks[order[0]]:.1f}"
    said += f" of {len(ranks.names)})"
    if ranks.ranking.p >= LEVEL:
        said += f", though no difference in ranks is shown (Friedman p = {ranks.ranking.p:.2f})"
    if best == reference:
        return f"{said}: no strategy is ahead of it on average."
    comparisons = [
        (summary, row)
        for summary in summaries
        for row in summary.rows
        if row.strategy == best and row.comparison is not None
    ]
    if reference is None or not comparisons:
        return f"{said}."
    ahead = sum(_gain(row) > 0 for _, row in comparisons)
    better_count = sum(
        row.comparison.verdict == "better" for _, row in comparisons if row.comparison
    )
    said += (
        f"; it is ahead of {reference} in {ahead} of {len(comparisons)}, shown in {better_count}"
    )
    shares = [_share(summary, row) for summary, row in comparisons]
    shares_reached = [share for share in shares if share is not None]
    if shares_reached:
        mean = float(np.mean(shares_reached))
        fewer = f"{abs(mean):.0%} {'fewer' if mean >= 0 else 'more'} labels"
        said += f", and takes {fewer} for {reference}'s last figure"
        said += f" in the mean of the {len(shares_reached)} where it gets there"
    return f"{said}."


def _saving_words(summary: Summary, row: Row) -> str:
    last = _last(summary, row)
    if last is None or not last.reached or last.saved <= 0:
        return ""
    interval = last.needed
    return (
        f" and reaches {summary.reference}'s last figure with {interval.labels:,.0f} of its "
        f"{interval.reference:,.0f} labels, {last.saved / interval.reference:.0%} fewer"
    )


def _share(summary: Summary, row: Row) -> float | None:
    """The share of labels saved for the reference's last figure; None where it is not reached."""
    last = _last(summary, row)
    return last.saved / last.needed.reference if last is not None and last.reached else None


def _last(summary: Summary, row: Row) -> SavedLabels | None:
    return next((s for s in savings(summary, row) if s.share == 1.0), None)


def _gain(row: Row) -> float:
    return float(row.comparison.area.difference.mean) if row.comparison else math.nan


def _points(row: Row) -> str:
    assert row.comparison is not None
    d = row.comparison.area.difference
    interval = (
        ""
        if math.isnan(float(d.low))
        else f" (95% interval {_one_decimal(d.low)} to {_one_decimal(d.high)})"
    )
    return f"{_one_decimal(d.mean if interval else abs(d.mean))} points{interval}"


def _one_decimal(share: Array) -> str:
    """Return a share in percent; what rounds to zero has no sign."""
    return f"{100 * float(share):z.1f}"


def _p(row: Row) -> str:
    assert row.comparison is not None
    p_words = tables.p_value(row.comparison.p_adjusted)
    return f"Holm-corrected p {p_words if p_words.startswith('<') else f'= {p_words}'}"


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.comparison.seeds) for row in rows if row.comparison})
    if counts[0] == counts[-1]:
        return format_count(counts[0], "seed")
    return f"{counts[0]} to {counts[-1]} seeds"


def _join_names(rows: Sequence[Row]) -> str:
    """`margin is`, or `margin, egl and badge are`."""
    names = [row.strategy for row in rows]
    if len(names) == 1:
        return f"{names[0]} is"
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} others are"
    return f"{', '.join(names[:-1])} and {names[-1]} are"
