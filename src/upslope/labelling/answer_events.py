"""The events by which answers enter the log of a project: of a person, or of an import.

Nothing is overwritten: an answer that another kind of answer replaces is taken back first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upslope.labelling.state import BY_IMPORT, Answer, AnswerLabel, LabelState, Pass
from upslope.ledger import Event

_AT_ONCE = 1000  # imported labels in one event


@dataclass(frozen=True)
class ImportEvents:
    """events: that record an import. new: how many samples get a label and had no answer of this
    source. corrected: how many earlier answers of its source they change."""

    events: tuple[Event, ...]
    new: int
    corrected: int


def make_details(
    author: str,
    seconds: float | None,
    note: str,
    slice_: str,
    why: str,
    guess_shown: bool,
    content: str,
) -> dict[str, Any]:
    """Return what is recorded beside an answer, or beside the lack of one."""
    return {
        "author": author,
        **({"seconds": seconds} if seconds else {}),
        "note": note,
        "slice": slice_,
        "why": why,
        "guess_shown": guess_shown,
        **({"content": content} if content else {}),
    }


def make_label_events(
    id_: str, label: AnswerLabel, before: Answer | None, details: Mapping[str, Any]
) -> list[Event]:
    """Return the events of a label. before: what the same author said of the sample until now."""
    body = {"labels": {id_: label}, **details}
    if before is None:
        return [Event("labelled", 0, body)]
    if before.label is None:
        return [make_undo_event(before), Event("labelled", 0, body)]
    return [Event("corrected", 0, {**body, "before": {id_: before.label}})]


def make_pass_events(
    id_: str, reason: str, before: Answer | None, details: Mapping[str, Any]
) -> list[Event]:
    """Return the events of a sample that a person passes. before: as of `make_label_events`."""
    event = Event("passed", 0, {"ids": {id_: reason}, **details})
    return [event] if before is None else [make_undo_event(before), event]


def make_undo_event(answer: Answer) -> Event:
    """Return the event that takes an answer back."""
    body: dict[str, Any] = {"labels": {}, "passed": {}, "author": answer.author}
    if answer.label is None:
        body["passed"][answer.id] = answer.reason
    else:
        body["labels"][answer.id] = answer.label
    return Event("taken_back", 0, body)


def make_import_events(
    state: LabelState,
    labels: Mapping[str, AnswerLabel | Pass],
    author: str,
    contents: Mapping[str, str],
) -> ImportEvents:
    """Return the events that make the labels of a source these; what stands already has none.

    state: before the import. labels: id -> label, or that somebody passed the sample. author: by
    which the source is recorded. contents: id -> content of those samples where it is known.
    """
    events: list[Event] = []
    by_kind: dict[str, dict[str, Any]] = {"labelled": {}, "corrected": {}, "passed": {}}
    label_count = correction_count = 0
    for id_, value in labels.items():
        before = state.answers.get(id_, {}).get(author)
        if before is not None and value == _value_of(before):
            continue
        correction_count += before is not None
        label_count += before is None and not isinstance(value, Pass)
        kind = _kind(before, value)
        by_kind[kind][id_] = value.reason if isinstance(value, Pass) else value
        if before is not None and kind != "corrected":
            events.append(make_undo_event(before))
    events += [
        Event(
            kind,
            0,
            {field: part, "author": author, "slice": BY_IMPORT} | _content_field(part, contents),
        )
        for kind, values in by_kind.items()
        for field, part in _parts(kind, values)
    ]
    return ImportEvents(tuple(events), label_count, correction_count)


def _kind(before: Answer | None, value: AnswerLabel | Pass) -> str:
    """The kind of the event that puts a value in the place of an answer."""
    if isinstance(value, Pass):
        return "passed"
    return "labelled" if before is None or before.label is None else "corrected"


def _value_of(answer: Answer) -> AnswerLabel | Pass:
    return Pass(answer.reason) if answer.label is None else answer.label


def _content_field(ids: Mapping[str, Any], contents: Mapping[str, str]) -> dict[str, Any]:
    """What an event of several samples says of their contents."""
    part = {id_: contents[id_] for id_ in ids if contents.get(id_)}
    return {"contents": part} if part else {}


def _parts(kind: str, values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(the field of the event's body, id -> value) of at most `_AT_ONCE` values each."""
    field = "ids" if kind == "passed" else "labels"
    items = list(values.items())
    return [
        (field, dict(items[start : start + _AT_ONCE])) for start in range(0, len(items), _AT_ONCE)
    ]
