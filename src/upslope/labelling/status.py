"""Where a labelling project stands, in a few figures and words."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from upslope.evaluation import wilson_interval
from upslope.labelling.project import names_of, read_project
from upslope.labelling.state import CONTROL, IMPORTED, slice_of


def status(folder: Path | str) -> dict[str, Any]:
    """Return where a project stands, as plain data. Shares are between 0 and 1.

    Raises:
        RunError: there is no project in the folder, or it is damaged.
    """
    settings, state = read_project(folder)
    classes: Counter[str] = Counter(dict.fromkeys(settings.classes, 0))
    people: dict[str, list[float]] = {}
    slices: Counter[str] = Counter()
    labelled, passed = 0, Counter[str]()
    for answers in state.answers.values():
        slices[slice_of(answers)] += 1
        labels = [answer for answer in answers.values() if answer.label is not None]
        labelled += bool(labels)
        for answer in answers.values():
            if answer.slice != IMPORTED:
                people.setdefault(answer.author, []).append(answer.seconds)
            if answer.label is None:
                passed[answer.reason] += 1
        for answer in labels[:1]:
            assert answer.label is not None
            names = names_of(answer.label, settings.classes)
            classes.update([names] if isinstance(names, str) else names)
    measured = state.measurements[-1] if state.measurements else None
    accuracy = None
    if measured is not None and not state.closed:
        p = wilson_interval(measured.correct, measured.of)
        accuracy = {
            "value": p.value, "low": p.low, "high": p.high, "of": p.trials, "method": p.method,
            "confidence": p.confidence, "labels": measured.labels,
        }  # fmt: skip
    return {
        "project": str(folder),
        "data": settings.data,
        "strategy": settings.strategy,
        "labelled": labelled,
        "passed": dict(passed),
        "imported": slices[IMPORTED],
        "control": slices[CONTROL],
        "control_closed": state.closed,
        "unreadable": len(state.unreadable),
        "classes": dict(classes),
        "accuracy": accuracy,
        "people": {
            name: {"answers": len(seconds), "median_seconds": statistics.median(seconds)}
            for name, seconds in people.items()
        },
    }


def lines(standing: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what `status` says as (title, text), for people."""
    counts = f"{standing['labelled']:,} samples"
    counts += f", {standing['imported']:,} of them imported" if standing["imported"] else ""
    counts += "".join(f"; {count:,} {reason}" for reason, count in standing["passed"].items())
    accuracy = standing["accuracy"]
    if accuracy is not None:
        worth = (
            f"{100 * accuracy['value']:.1f}%, {100 * accuracy['confidence']:.0f}% interval "
            f"{100 * accuracy['low']:.1f}% to {100 * accuracy['high']:.1f}% "
            f"({accuracy['method']}), of {accuracy['of']:,} control answers, by a model of "
            f"{accuracy['labels']:,} labels"
        )
    elif standing["control_closed"]:
        worth = "not measured: the control slice is closed and trained on"
    else:
        worth = "not measured yet"
    return [
        ("project", standing["project"]),
        ("data", standing["data"]),
        ("strategy", standing["strategy"]),
        ("labelled", counts),
        ("classes", ", ".join(f"{name} {n:,}" for name, n in standing["classes"].items())),
        ("accuracy", worth),
        *(
            ("person", f"{name}: {p['answers']:,} answers, median {p['median_seconds']:.1f} s")
            for name, p in standing["people"].items()
        ),
        *(
            [("unreadable", f"{standing['unreadable']:,} samples, which are not asked")]
            if standing["unreadable"]
            else []
        ),
    ]
