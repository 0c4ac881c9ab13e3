"""Where a labelling project stands, in a few figures and words."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.counts import format_count
from upslope.evaluation import cohen_kappa, fleiss_kappa, wilson_interval
from upslope.labelling.advice import Advice, sentences
from upslope.labelling.outlines import classes_in
from upslope.labelling.people import disagreements
from upslope.labelling.project import read_project
from upslope.labelling.settings import OUTLINES, ProjectSettings
from upslope.labelling.state import CONTROL, Answer, LabelState, answers_that_count


def status(folder: Path | str, wage: float | None = None) -> dict[str, Any]:
    """Return where a project stands, as plain data. Shares are between 0 and 1.

    wage: for an hour of labelling, by which the advice says what labels cost.

    Raises:
        RunError: there is no project in the folder, or it is damaged.
    """
    settings, state = read_project(folder)
    people: dict[str, list[float | None]] = {}
    pass_counts: Counter[str] = Counter()
    for answers in state.answers.values():
        for answer in answers.values():
            if not answer.is_imported:
                people.setdefault(answer.author, []).append(answer.seconds)
            if answer.label is None:
                pass_counts[answer.reason] += 1
    tally = state.tally
    measurement = state.measurements[-1] if state.measurements else None
    accuracy = None
    if measurement is not None and not state.closed:
        p = wilson_interval(measurement.correct, measurement.of)
        accuracy = {
            "value": p.value, "low": p.low, "high": p.high, "of": p.trials, "method": p.method,
            "confidence": p.confidence, "labels": measurement.labels,
        }  # fmt: skip
    return {
        "project": str(folder),
        "data": settings.data,
        "strategy": settings.strategy,
        "labelled": tally.labelled,
        "passed": dict(pass_counts),
        "imported": tally.imported,
        "control": tally.slices[CONTROL],
        "control_closed": state.closed,
        "unreadable": len(state.unreadable),
        "copies": dict(state.copies),
        "classes": _count_classes(state, settings),
        "accuracy": accuracy,
        "advice": state.advice,
        "advice_lines": advice_lines(state, settings, wage),
        "agreement": agreement(state),
        "disagreements": len(disagreements(state, settings.classes)),
        "asked_again": len(state.again),
        "people": {
            name: {"answers": len(seconds), **_pace(seconds)} for name, seconds in people.items()
        },
    }


def _count_classes(state: LabelState, settings: ProjectSettings) -> dict[str, int]:
    """Class -> samples whose merged label has it, or has an object of it."""
    if settings.kind not in OUTLINES:
        return {name: state.tally.labels[k] for k, name in enumerate(settings.classes)}
    labels = [*state.labels(control=False).values(), *state.labels(control=True).values()]
    counts = Counter(name for label in labels for name in classes_in(str(label)))
    return {name: counts[name] for name in settings.classes}


def advice_lines(state: LabelState, settings: ProjectSettings, wage: float | None) -> list[str]:
    """Return the last advice in sentences, at the pace of the people so far; none without any."""
    if state.advice is None:
        return []
    seconds = [
        answer.seconds
        for answers in state.answers.values()
        for answer in answers.values()
        if not answer.is_imported
    ]
    pace = _pace(seconds)["median_seconds"]
    return sentences(Advice.from_record(state.advice), pace, settings.control, wage)


def _pace(seconds: Sequence[float | None]) -> dict[str, Any]:
    """Median of the known times of answers, None without any, and how many are known."""
    times = [time for time in seconds if time is not None]
    return {
        "timed_answers": len(times),
        "median_seconds": statistics.median(times) if times else None,
    }


def agreement(state: LabelState) -> dict[str, Any] | None:
    """Return how far people agree on the samples that two or more of them labelled; else None.

    Skipped samples and imported labels are left out. The kappa is Cohen's for two people, and
    Fleiss' over the samples with exactly two answers for more; None where it is not defined.
    """
    answers_by_person = [_labels_of_people(answers) for answers in state.answers.values()]
    several = [labels for labels in answers_by_person if len(labels) > 1]
    if not several:
        return None
    names = sorted({name for labels in several for name in labels})
    if len(names) == 2:
        method = "Cohen"
        kappa = cohen_kappa(*([labels[name] for labels in several] for name in names))
    else:
        method = "Fleiss"
        kappa = _kappa_of_pairs([labels for labels in several if len(labels) == 2])
    return {
        "samples": len(several),
        "agreed": sum(len(set(labels.values())) == 1 for labels in several),
        "kappa": kappa if math.isfinite(kappa) else None,
        "method": method,
    }


def _labels_of_people(by_author: Mapping[str, Answer]) -> dict[str, object]:
    """Author -> the label of a sample, of those people whose answers count."""
    return {
        answer.author: tuple(answer.label) if isinstance(answer.label, list) else answer.label
        for answer in answers_that_count(by_author)
        if not answer.is_imported
    }


def _kappa_of_pairs(pairs: Sequence[Mapping[str, object]]) -> float:
    """Fleiss' kappa of samples with two labels each, author -> label; NaN without any."""
    if not pairs:
        return math.nan
    kinds = sorted({repr(label) for labels in pairs for label in labels.values()})
    counts = [[list(map(repr, labels.values())).count(kind) for kind in kinds] for labels in pairs]
    return fleiss_kappa(counts)


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
            f"({accuracy['method']}), of {format_count(accuracy['of'], 'control answer')}, by a "
            f"model of {format_count(accuracy['labels'], 'label')}"
        )
    elif standing["control_closed"]:
        worth = "not measured: the control slice is closed and trained on"
    else:
        worth = "not measured yet"
    rows = [
        ("project", standing["project"]),
        ("data", standing["data"]),
        ("strategy", standing["strategy"]),
        ("labelled", counts),
        ("classes", ", ".join(f"{name} {n:,}" for name, n in standing["classes"].items())),
        ("accuracy", worth),
    ]
    rows += [("advice", line) for line in standing["advice_lines"]]
    rows += [
        ("person", f"{name}: {format_count(p['answers'], 'answer')}, {_pace_words(p)}")
        for name, p in standing["people"].items()
    ]
    if standing["agreement"]:
        rows.append(("agreement", _agreement_words(standing["agreement"])))
    if standing["disagreements"]:
        rows.append(("review", _disagreement_words(standing["disagreements"])))
    if standing["copies"]:
        rows.append(("copies", _copies_words(standing["copies"])))
    if standing["unreadable"]:
        one, several = "sample, which is not asked", "samples, which are not asked"
        rows.append(("unreadable", format_count(standing["unreadable"], one, several)))
    return rows


def _pace_words(person: dict[str, Any]) -> str:
    count = person["timed_answers"]
    if not count:
        return "no time known"
    some = "" if count == person["answers"] else f" of the {count:,} whose time is known"
    return f"median {person['median_seconds']:.1f} s{some}"


def _copies_words(copies: dict[str, str]) -> str:
    some = "; ".join(f"{id_} of {of}" for id_, of in list(copies.items())[:3])
    more = f" and {len(copies) - 3:,} more (--json)" if len(copies) > 3 else ""
    return f"{len(copies):,} samples are copies of others, and asked once: {some}{more}"


def _disagreement_words(count: int) -> str:
    samples = format_count(count, "sample")
    return f"{samples} whose answers disagree: upslope label disagreements"


def _agreement_words(agreement: dict[str, Any]) -> str:
    words = (
        f"{agreement['agreed']:,} of {agreement['samples']:,} samples that several people labelled"
    )
    if agreement["kappa"] is None:
        return words
    return f"{words}, {agreement['method']}'s kappa {agreement['kappa']:.2f}"
