"""The table of a study: as rows of text, Markdown, CSV and JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from upslope.evaluation import INTERVAL_SEEDS
from upslope.files import csv_text, to_json
from upslope.ledger.records import FITS
from upslope.report.study import Run
from upslope.report.summary import LEVEL, Comparison, Row, Summary
from upslope.report.text_tables import DASH, markdown_table, plain_markdown

MANY_SEEDS = 10
"""Seeds from which a table says nothing of their number."""


def header(summary: Summary) -> list[str]:
    """Column names, as `cells` fills them."""
    budgets = [f"{b:,}" for b in summary.budgets]
    against = [f"vs {summary.reference}", "p (Holm)"] if summary.reference else []
    return ["strategy", *budgets, "area", *against, "select s", "train s", "seeds"]


def cells(summary: Summary, row: Row) -> list[str]:
    """One row: percentages with the half-width of their interval, seconds per run."""
    curve = [
        percent(float(m), float(high))
        for m, high in zip(row.curve.mean, row.curve.high, strict=True)
    ]
    against = []
    if summary.reference:
        comparison = row.comparison
        against = (
            [difference(comparison), p_value(comparison.p_adjusted)] if comparison else ["", ""]
        )
    return [
        row.strategy,
        *curve,
        percent(float(row.area.mean), float(row.area.high)),
        *against,
        f"{row.selecting_seconds:.1f}",
        f"{row.training_seconds:.1f}",
        str(len(row.seeds)),
    ]


def percent(mean: float, high: float) -> str:
    """`95.1 ±0.8`, from shares; without the interval where there is none."""
    half = "" if math.isnan(high) else f" ±{100 * (high - mean):.1f}"
    return f"{100 * mean:.1f}{half}"


def difference(comparison: Comparison) -> str:
    """`+1.24 ±0.45`: points of area, strategy minus reference, within the seed; `0.00` for none."""
    d = comparison.area.difference
    half = "" if math.isnan(float(d.high)) else f" ±{100 * float(d.high - d.mean):.2f}"
    return f"{format_signed(100 * float(d.mean), 2)}{half}"


def format_signed(value: float, decimals: int) -> str:
    """`+1.24`, `-0.30`, or `0.00` where no digit is left, which has no sign."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def p_value(p: float) -> str:
    """`0.013`, `<0.001`, or a dash where nothing was tested.

    `<0.05` for what would round to the level itself, which is none of those that are below it.
    """
    if math.isnan(p):
        return DASH
    if p < 0.001:
        return "<0.001"
    text = f"{p:.3f}"
    return f"<{LEVEL}" if p < LEVEL <= float(text) else text


def name_of(metric: str) -> str:
    """A figure's key as a reader calls it."""
    title_of = {"miou": "Mean IoU", "map": "Mean average precision", "r2": "R²"}
    return title_of.get(metric, metric.replace("_", " ").capitalize())


def markdown(summary: Summary) -> str:
    """The table, with a line that says how to read it."""
    table = markdown_table(header(summary), [cells(summary, row) for row in summary.rows])
    return "\n".join([table, "", *[f"{plain_markdown(note)}  " for note in notes(summary)], ""])


def notes(summary: Summary) -> list[str]:
    """What a reader must know to read the figures honestly."""
    study = summary.study
    intervals = any(len(row.seeds) >= INTERVAL_SEEDS for row in summary.rows)
    half = ", ± half of the 95% Student t interval" if intervals else ""
    sentences = [
        f"{name_of(study.metric)} on the test set in percent at each number of labels: mean over "
        f"seeds{half}. Area: the mean over the budgets (trapezoid rule)."
    ]
    if summary.reference:
        sentences.append(
            f"vs {summary.reference}: paired difference of the area within each seed, in points; "
            "p: paired t test, Holm-corrected over the strategies."
        )
    sentences += [*_one_value_words(summary), *_pairs(summary), *_few_seeds(summary)]
    sentences += [*study.notes, *_unfitted_words(summary), *_changes(summary)]
    sentences += [
        f"Not counted: {run.strategy} seed {run.seed}, at {len(run.scores)} of {run.cycles} "
        "cycles. Run again the command that began it, to finish it."
        for run in _runs(summary)
        if not run.complete
    ]
    return sentences


def _one_value_words(summary: Summary) -> list[str]:
    """One sentence where figures have no interval although seeds are enough, if there are any."""
    if not any(
        len(row.seeds) >= INTERVAL_SEEDS and np.isnan([*row.curve.high, row.area.high]).any()
        for row in summary.rows
    ):
        return []
    return [
        "No ± where all seeds have one value: on a test set of finite size that is chance, and "
        "tells nothing of how far seeds vary."
    ]


def _runs(summary: Summary) -> list[Run]:
    """All runs, in the order of the rows and of the seeds, however their folders were listed."""
    places = {row.strategy: i for i, row in enumerate(summary.rows)}
    return sorted(
        summary.study.runs,
        key=lambda run: (places.get(run.strategy, len(places)), run.strategy, run.seed),
    )


def _pairs(summary: Summary) -> list[str]:
    """Sentences about comparisons over other seeds than the rest of their row, or over none."""
    others = [row for row in summary.rows if summary.reference not in (None, row.strategy)]
    not_compared = [row.strategy for row in others if row.comparison is None]
    sentences = (
        [f"Not compared: {', '.join(not_compared)}: no seed in common with {summary.reference}."]
        if not_compared
        else []
    )
    fewer = [
        f"{row.strategy} over {len(row.comparison.seeds)} of {len(row.seeds)} seeds"
        for row in others
        if row.comparison and len(row.comparison.seeds) < len(row.seeds)
    ]
    if fewer:
        sentences.append(
            f"Compared over the seeds in common with {summary.reference}: {', '.join(fewer)}. "
            "Other columns are of all seeds."
        )
    return [*sentences, *_alike_words(others)]


def _alike_words(rows: Sequence[Row]) -> list[str]:
    """Sentences on strategies whose seeds have no spread: by no difference, of two seeds, of more.

    rows: of strategies that may have been compared.
    """
    alike = [
        row
        for row in rows
        if row.comparison and len(row.comparison.seeds) > 1 and not row.comparison.area.has_spread
    ]
    names: dict[str, list[str]] = {}
    for row in alike:
        names.setdefault(_alike_ending(row), []).append(row.strategy)
    return [f"{', '.join(names[ending])}: {ending}" for ending in sorted(names)]


def _alike_ending(row: Row) -> str:
    """The end of a sentence on a strategy whose seeds have no spread."""
    assert row.comparison is not None
    if float(row.comparison.area.difference.mean) == 0.0:
        return "the area of the reference in every seed, so that p is 1."
    start = "from which no t test can tell how far seeds vary; p is"
    if len(row.comparison.seeds) < INTERVAL_SEEDS:
        return f"the same difference in both seeds, {start} of the sign-flip test."
    return (
        f"the same difference in all seeds, {start} the largest chance of that on a test set of "
        "finite size, without an effect."
    )


def _few_seeds(summary: Summary) -> list[str]:
    """A sentence on each number of seeds that is few, of the strategies which have so many."""
    names: dict[int, list[str]] = {}
    for row in summary.rows:
        names.setdefault(len(row.seeds), []).append(row.strategy)
    sentences = []
    for count in sorted(count for count in names if count < MANY_SEEDS):
        of = f" ({', '.join(names[count])})" if len(names) > 1 else ""
        if count == 1:
            sentences.append(
                f"One seed{of}: no interval and no test. The order of the strategies may be chance."
            )
        elif count < INTERVAL_SEEDS:
            sentences.append(
                f"{count} seeds{of}: no interval, as it would rest on two values. The curves show "
                "each seed as a point; small differences cannot be shown."
            )
        else:
            sentences.append(
                f"{count} seeds{of} are few: small differences cannot be shown, and intervals rest "
                "on the assumption that seeds vary about normally."
            )
    return sentences


def _unfitted_words(summary: Summary) -> list[str]:
    """One sentence about the networks that have not learnt their own labels, if there are any."""
    labels: dict[str, set[int]] = {}
    for run in _runs(summary):
        if run.unfitted:
            labels.setdefault(run.strategy, set()).update(run.unfitted)
    if not labels:
        return []
    where = "; ".join(
        f"{name} at {', '.join(f'{n:,}' for n in sorted(ns))} labels" for name, ns in labels.items()
    )
    fit = FITS[summary.study.metric]
    return [
        f"Not fitted: {fit.unfitted}, in {where}. Such networks have not learnt the labels they "
        f"have, and comparisons mean little there. {fit.remedy}."
    ]


def _changes(summary: Summary) -> list[str]:
    """Sentences about what changed in the course of runs, with how many runs it did."""
    runs = _runs(summary)
    counts = Counter(change for run in runs for change in run.changes)
    return [f"Changed in {n} of {len(runs)} runs: {change}." for change, n in counts.items()]


def as_csv(summary: Summary) -> str:
    """Long form, one line per strategy and budget, shares at full precision."""
    lines = []
    for row in summary.rows:
        for i, labels in enumerate(summary.budgets):
            figures = (float(x[i]) for x in (row.curve.mean, row.curve.low, row.curve.high))
            csv_cells = ["" if math.isnan(x) else repr(x) for x in figures]
            lines.append([row.strategy, labels, *csv_cells, len(row.seeds), summary.study.metric])
    return csv_text(("strategy", "labels", "mean", "low", "high", "seeds", "metric"), lines)


def as_json(summary: Summary, title: str = "") -> str:
    """Everything, numbers at full precision; null where there is no number."""
    document = {
        "title": title,
        "colours": dict(summary.slots),
        "metric": summary.study.metric,
        "budgets": list(summary.budgets),
        "pool_size": summary.study.pool_size,
        "full_data": summary.study.ceiling,
        "reference": summary.reference,
        "strategies": [_as_object(row) for row in summary.rows],
        "incomplete": [
            {"strategy": r.strategy, "seed": r.seed, "done": len(r.scores), "cycles": r.cycles}
            for r in summary.study.incomplete
        ],
        "notes": notes(summary),
        "config": dict(summary.study.config),
        "environment": dict(summary.study.environment),
    }
    return to_json(document)


def _as_object(row: Row) -> dict[str, Any]:
    comparison = row.comparison
    return {
        "strategy": row.strategy,
        "seeds": list(row.seeds),
        "mean": row.curve.mean.tolist(),
        "low": row.curve.low.tolist(),
        "high": row.curve.high.tolist(),
        "area": {
            "mean": float(row.area.mean),
            "low": float(row.area.low),
            "high": float(row.area.high),
        },
        "selecting_seconds": row.selecting_seconds,
        "training_seconds": row.training_seconds,
        "against_reference": None
        if comparison is None
        else {
            "seeds": list(comparison.seeds),
            "area_difference": float(comparison.area.difference.mean),
            "low": float(comparison.area.difference.low),
            "high": float(comparison.area.difference.high),
            "p_paired_t": comparison.area.p_t if comparison.area.has_spread else None,
            "p_paired_t_holm": comparison.p_adjusted,
            "p_sign_flip": comparison.area.p_sign_flip,
            "seeds_better": comparison.area.wins,
            "labels_to_reach_the_reference": comparison.labels_needed,
            "verdict": comparison.verdict,
        },
    }
