"""Where a run stands, in a few figures and words."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from upslope.counts import format_count
from upslope.ledger.records import FITS, RunResult

SHEET = "to-label.csv"
"""The file in a run's folder where people answer."""


def status(run: RunResult) -> dict[str, Any]:
    """Return where a run stands, as plain data.

    Figures are shares. `accuracy` and the like stand under `test`, None without a test set, and
    under `training`, on the labelled set; both None before the first cycle is finished.
    """
    last = run.cycles[-1] if run.cycles else None
    sheet = run.path / SHEET
    return {
        "run": str(run.path),
        "strategy": run.strategy,
        "seed": run.seed,
        "data": _data(run),
        "pool": run.info.get("pool"),
        "cycles_done": len(run.cycles),
        "cycles": run.info["cycles"],
        "labels": len(run.labels),
        "waiting": len(run.pending),
        "passed": len(run.passed),
        "unreadable": list(run.unreadable),
        "figure": run.primary,
        "test": _figure(last.metrics, run.primary) if last else None,
        "training": _figure(last.train_metrics, run.primary) if last else None,
        "test_samples": run.info.get("test"),
        "unfitted_cycles": [c.cycle + 1 for c in run.unfitted],
        "labels_from": run.labels_from or None,
        "changes": [str(change) for change in run.changes],
        "finished": run.finished and not run.pending,
        "to_label": str(sheet) if run.pending and sheet.is_file() else None,
        "next": _next(run),
    }


def _data(run: RunResult) -> str | None:
    """The path that the user gave, or the name of a data set that needs none."""
    section = run.config.get("data")
    data_name = section.get("name") if isinstance(section, Mapping) else None
    return run.info.get("root") or data_name or run.info.get("data")


def _figure(metrics: Mapping[str, float], name: str) -> float | None:
    """A figure as JSON can hold it: None where it is not known, or no number."""
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def lines(standing: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what `status` says as (title, text), for people."""
    counts = f"{standing['labels']:,}"
    counts += f", {standing['waiting']:,} asked and waiting" if standing["waiting"] else ""
    counts += f", {standing['passed']:,} skipped" if standing["passed"] else ""
    cycles, earlier_run = standing["unfitted_cycles"], standing["labels_from"]
    unreadable = standing["unreadable"]
    return [
        ("run", standing["run"]),
        ("strategy", f"{standing['strategy']}, seed {standing['seed']}"),
        ("pool", f"{format_count(standing['pool'], 'sample')} of {standing['data']}"),
        ("cycles", f"{standing['cycles_done']} of {standing['cycles']} finished"),
        ("labels", counts),
        *([("unreadable", ", ".join(map(repr, unreadable)))] if unreadable else []),
        ("last cycle", last_cycle(standing)),
        *([("not fitted", unfitted_words(cycles, standing["figure"]))] if cycles else []),
        *([("begun with", f"the labels of {earlier_run}")] if earlier_run else []),
        *(("changed", change) for change in standing["changes"]),
        ("next", standing["next"]),
    ]


def last_cycle(standing: dict[str, Any]) -> str:
    """Say what the last finished cycle reached, of what `status` says."""
    if standing["training"] is None:
        return "none finished yet"
    figure = standing["figure"]
    words = f"{figure} {100 * standing['training']:.1f}% on the labelled set"
    if standing["test"] is not None:
        return f"{figure} {100 * standing['test']:.1f}% on the test set, {words}"
    return f"{words}; there is no test set"


def unfitted_words(cycles: list[int], primary: str) -> str:
    """Say what it means that the networks of these cycles have not learnt their labels.

    primary: name of the figure by which they have not.
    """
    fit = FITS[primary]
    many = "s" if len(cycles) > 1 else ""
    numbers = ", ".join(str(n) for n in cycles)
    return (
        f"cycle{many} {numbers}: {fit.unfitted}, so that scores and comparisons mean little "
        f"there. {fit.remedy}, in a new run."
    )


def _next(run: RunResult) -> str:
    sheet = run.path / SHEET
    if run.pending and sheet.is_file():
        # Masks are files in the data set; the column then holds skips alone.
        what = "draw the masks of" if run.primary == "miou" else "fill in the column `label` of"
        return f"{what} {sheet}, then run again the command that began the run"
    if run.pending:
        return (
            "run again the command that began the run: it takes in labels, or says where to write "
            "them"
        )
    if not run.finished:
        return "run again the command that began the run: it goes on where it stopped"
    return (
        f"`upslope predict {shlex.quote(str(run.path))}` applies its network; a larger "
        "experiment.cycles in the command that began the run extends it"
    )
