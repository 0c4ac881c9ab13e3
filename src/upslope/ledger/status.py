"""Where a run stands, in a few figures and words."""

from __future__ import annotations

from typing import Any

from upslope.ledger.records import FITTED, RunResult

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
        "data": run.info.get("data"),
        "pool": run.info.get("pool"),
        "cycles_done": len(run.cycles),
        "cycles": run.info["cycles"],
        "labels": len(run.labels),
        "waiting": len(run.pending),
        "passed": len(run.passed),
        "figure": run.primary,
        "test": last.metrics.get(run.primary) if last else None,
        "training": last.train_metrics.get(run.primary) if last else None,
        "test_samples": run.info.get("test"),
        "unfitted_cycles": [c.cycle + 1 for c in run.unfitted],
        "changes": [str(change) for change in run.changes],
        "finished": run.finished and not run.pending,
        "to_label": str(sheet) if run.pending and sheet.is_file() else None,
        "next": _next(run),
    }


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what `status` found as (title, text), for people."""
    counts = f"{found['labels']:,}"
    counts += f", {found['waiting']:,} asked and waiting" if found["waiting"] else ""
    counts += f", {found['passed']:,} passed" if found["passed"] else ""
    unfitted = found["unfitted_cycles"]
    return [
        ("run", found["run"]),
        ("strategy", f"{found['strategy']}, seed {found['seed']}"),
        ("pool", f"{found['pool']:,} samples of {found['data']}"),
        ("cycles", f"{found['cycles_done']} of {found['cycles']} finished"),
        ("labels", counts),
        ("last cycle", last_cycle(found)),
        *([("not fitted", unfitted_words(unfitted))] if unfitted else []),
        *(("changed", change) for change in found["changes"]),
        ("next", found["next"]),
    ]


def last_cycle(found: dict[str, Any]) -> str:
    """Say what the last finished cycle reached, of what `status` found."""
    if found["training"] is None:
        return "none finished yet"
    figure = found["figure"]
    words = f"{figure} {100 * found['training']:.1f}% on the labelled set"
    if found["test"] is not None:
        return f"{figure} {100 * found['test']:.1f}% on the test set, {words}"
    return f"{words}; there is no test set"


def unfitted_words(cycles: list[int]) -> str:
    """Say what it means that the networks of these cycles have not learnt their labels."""
    many = "s" if len(cycles) > 1 else ""
    numbers = ", ".join(str(n) for n in cycles)
    return (
        f"cycle{many} {numbers}: training accuracy below {100 * FITTED:.0f}%, so that scores and "
        "comparisons mean little there. Train longer (training.epochs), in a new run."
    )


def _next(run: RunResult) -> str:
    sheet = run.path / SHEET
    if run.pending and sheet.is_file():
        return f"fill in the column `label` of {sheet}, then run the same command again"
    if run.pending:
        return "run the same command again: it takes in labels, or says where to write them"
    if not run.finished:
        return "run the same command again: it goes on where it stopped"
    return "nothing is left to do; a larger experiment.cycles in the same command extends the run"
