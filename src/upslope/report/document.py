"""Everything that the page shows, as plain data: figures are computed here, and drawn there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from upslope.evaluation import INTERVAL_SEEDS, Interval, smallest_sign_flip_p
from upslope.report import tables
from upslope.report.choices import class_counts, overlaps
from upslope.report.figures import bounds
from upslope.report.protocol import environment_lines, protocol_text
from upslope.report.savings import Costs, SavedLabels, savings
from upslope.report.standing import Ranks, Wins, ranks_of, ranks_over, wins_of, wins_over
from upslope.report.summary import LEVEL, Row, Summary
from upslope.report.verdict import MARGIN, equality, verdict, verdict_over

MOST_CLASSES = 40
"""Classes whose balance is shown; of more, those with most labels, and the rest together."""


def document(
    summaries: Sequence[Summary],
    title: str,
    costs: Costs,
    galleries: Sequence[Mapping[str, Any] | None],
) -> dict[str, Any]:
    """Return the data of a page.

    summaries: one per data set. title: of the page. costs: what labelling is taken to cost.
    galleries: of each data set, as `gallery.gallery` gives it.
    """
    slots = {name: slot for summary in summaries for name, slot in summary.slots.items()}
    names = list(dict.fromkeys(row.strategy for s in summaries for row in s.rows))
    several = len(summaries) > 1
    ranks = ranks_over(summaries) if several else None
    return {
        "title": title,
        "level": LEVEL,
        "margin": MARGIN,
        "intervalSeeds": INTERVAL_SEEDS,
        "costs": {
            "seconds": costs.seconds_per_label,
            "wage": costs.wage,
            "currency": costs.currency,
        },
        "strategies": [{"name": name, "slot": slots[name]} for name in names],
        "verdict": verdict_over(summaries, ranks) if several else verdict(summaries[0]),
        "overall": {
            "wins": _wins(wins_over(summaries, names)),
            "ranks": _ranks(ranks, "data sets"),
        }
        if several
        else None,
        "sets": [
            _set(summary, gallery) for summary, gallery in zip(summaries, galleries, strict=True)
        ],
    }


def _set(summary: Summary, gallery: Mapping[str, Any] | None) -> dict[str, Any]:
    study = summary.study
    low, high = bounds(study.metric)
    names = [row.strategy for row in summary.rows]
    return {
        "name": study.name or "runs",
        "verdict": verdict(summary),
        "metric": tables.name_of(study.metric),
        "bounds": [None if math.isinf(low) else low, high],
        "budgets": list(summary.budgets),
        "pool": study.pool_size,
        "reference": summary.reference,
        "ceiling": study.ceiling,
        "rows": [_row(summary, row) for row in summary.rows],
        "unfinished": [
            {
                "strategy": run.strategy,
                "seed": run.seed,
                "budgets": list(run.budgets),
                "scores": list(run.scores),
            }
            for run in study.incomplete
        ],
        "signFlipFloor": _floor(summary),
        "wins": _wins(wins_of(summary)),
        "ranks": _ranks(ranks_of(summary), "seeds"),
        "overlap": _matrix(names, overlaps(study, names)),
        "balance": _balance(summary),
        "gallery": gallery,
        "notes": tables.notes(summary),
        "config": protocol_text(study.config),
        "environment": environment_lines(study.environment),
    }


def _row(summary: Summary, row: Row) -> dict[str, Any]:
    runs = summary.study.complete(row.strategy)
    few = len(row.seeds) < INTERVAL_SEEDS
    return {
        "name": row.strategy,
        "seeds": list(row.seeds),
        "curve": _interval(row.curve),
        "dots": [list(run.scores) for run in runs.values()] if few else None,
        "area": _interval(row.area),
        "selecting": row.selecting_seconds,
        "training": row.training_seconds,
        "comparison": _comparison(summary, row),
        "savings": [_saving(saving) for saving in savings(summary, row)],
    }


def _comparison(summary: Summary, row: Row) -> dict[str, Any] | None:
    comparison, equal = row.comparison, equality(summary, row)
    if comparison is None or equal is None:
        return None
    few = len(comparison.seeds) < INTERVAL_SEEDS
    reference = str(summary.reference)
    return {
        "seeds": list(comparison.seeds),
        "area": _interval(comparison.area.difference),
        "curve": _interval(comparison.curve),
        "dots": (
            summary.study.curves(row.strategy, comparison.seeds)
            - summary.study.curves(reference, comparison.seeds)
        ).tolist()
        if few
        else None,
        "wins": comparison.area.wins,
        "p": comparison.area.p_t if comparison.area.has_spread else None,
        "holm": comparison.p_adjusted,
        "signFlip": comparison.area.p_sign_flip,
        "equal": equal.p_equal,
        "notWorse": equal.p_not_worse,
        "rope": [equal.below, equal.within, equal.above],
        "verdict": comparison.verdict,
    }


def _saving(saving: SavedLabels) -> dict[str, Any]:
    interval = saving.needed
    return {
        "share": saving.share,
        "labels": _or_never(interval.labels),
        "low": _or_never(interval.low) if saving.told else None,
        "high": _or_never(interval.high) if saving.told else None,
        "reference": interval.reference,
    }


def _or_never(labels: float) -> float | str:
    """The number, or a word in place of infinity, which JSON has not."""
    return "never" if math.isinf(labels) else labels


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "mean": np.asarray(interval.mean).tolist(),
        "low": np.asarray(interval.low).tolist(),
        "high": np.asarray(interval.high).tolist(),
    }


def _floor(summary: Summary) -> float | None:
    """The p that no sign-flip test of the page can fall below: that of the most seeds."""
    seeds = [len(row.comparison.seeds) for row in summary.rows if row.comparison]
    return smallest_sign_flip_p(max(seeds)) if seeds else None


def _wins(wins: Wins | None) -> dict[str, Any] | None:
    return None if wins is None else _matrix(wins.names, wins.shares)


def _matrix(names: Sequence[str], shares: Any) -> dict[str, Any] | None:
    return None if shares is None else {"names": list(names), "shares": shares.tolist()}


def _ranks(ranks: Ranks | None, blocks: str) -> dict[str, Any] | None:
    if ranks is None:
        return None
    return {
        "names": list(ranks.names),
        "ranks": ranks.ranking.ranks.tolist(),
        "difference": ranks.ranking.critical_difference,
        "p": ranks.ranking.p,
        "count": ranks.blocks,
        "blocks": blocks,
    }


def _balance(summary: Summary) -> dict[str, Any] | None:
    """Mean labels per class over seeds, at each budget; None where labels are no classes."""
    shares: dict[str, np.ndarray] = {}
    classes: Sequence[str] = ()
    for row in summary.rows:
        runs = summary.study.complete(row.strategy).values()
        records = [run.record for run in runs if run.record is not None]
        if not records:
            continue
        classes = list(records[0].info.get("classes", ()))
        counts = [class_counts(record, len(classes)) for record in records]
        counts_stated = [count for count in counts if count is not None]
        if len(classes) < 2 or not counts_stated or len(counts_stated) < len(counts):
            return None
        shares[row.strategy] = np.mean(counts_stated, axis=0)
    if not shares:
        return None
    if len(classes) > MOST_CLASSES:
        total = np.sum([share[-1] for share in shares.values()], axis=0)
        most = np.sort(np.argsort(-total, kind="stable")[: MOST_CLASSES - 1])
        rest = np.setdiff1d(np.arange(len(classes)), most)
        shares = {
            name: np.concatenate(
                [share[:, most], share[:, rest].sum(axis=1, keepdims=True)], axis=1
            )
            for name, share in shares.items()
        }
        classes = [*(classes[i] for i in most), f"{len(rest)} others"]
    return {
        "classes": list(classes),
        "counts": {name: share.round(2).tolist() for name, share in shares.items()},
    }
