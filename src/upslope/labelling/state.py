"""The state of a labelling project: the answers that stand, and what they come to.

Nothing is overwritten: the log keeps every answer as an event (`events`), and the state is what
they add up to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

AnswerLabel = int | list[int] | str
"""The position of a class, 0 and 1 for each label of a set, or the text of outlines."""

SKIP, CANNOT_TELL = "skip", "cannot tell"
REASONS = (SKIP, CANNOT_TELL)
CONTROL, BY_IMPORT = "control", "imported"
IMPORT_AUTHOR = "import: "
"""How the authors of imported labels begin, before the name of their source; people's may not."""


@dataclass(frozen=True)
class Pass:
    """In place of a label: a person gave none. reason: one of `REASONS`."""

    reason: str


@dataclass(frozen=True)
class Answer:
    """What one person said of one sample.

    label: None where the sample was passed; then `reason` is one of `REASONS`. seconds: from the
    moment when the sample was shown, None where unknown. slice: why the sample was asked, "control"
    for one of the random control sample. guess_shown: the person had asked for the model's guess
    before.
    order: the count of events before this one, by which answers are ordered. first: the order of
    the answer that this one corrects, directly or by others; its own where it corrects none.
    """

    id: str
    author: str
    label: AnswerLabel | None
    reason: str = ""
    seconds: float | None = None
    note: str = ""
    slice: str = ""
    guess_shown: bool = False
    order: int = 0
    first: int = 0

    @property
    def is_imported(self) -> bool:
        """Return whether the label comes from a file or the data, and not from a person."""
        return self.slice == BY_IMPORT


@dataclass(frozen=True)
class Measurement:
    """How many control answers a model of `labels` training labels agreed with, `correct` of
    `of`. advice: the record of an `Advice` that was given then, None where none was new."""

    labels: int
    correct: int
    of: int
    advice: Mapping[str, Any] | None = None


@dataclass
class Tally:
    """Counts over samples with an answer, kept with every event: the page shows them every time.

    labelled, passed: samples with a label, and with answers but none. imported: samples whose
    label comes from an import alone. slices: slice -> samples.
    labels: position of a class -> samples whose merged label has it. by_author: author -> the ids
    that this person answered, the newest last.
    """

    labelled: int = 0
    passed: int = 0
    imported: int = 0
    slices: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    by_author: dict[str, dict[str, None]] = field(default_factory=dict)

    def copy(self) -> Tally:
        """Return a tally that changes by itself."""
        by_author = {author: dict(ids) for author, ids in self.by_author.items()}
        return Tally(
            self.labelled, self.passed, self.imported, Counter(self.slices), Counter(self.labels),
            by_author,
        )  # fmt: skip

    def count(self, by_author: Mapping[str, Answer], sign: int) -> None:
        """Add a sample's answers (`sign` 1), or take them off (-1)."""
        if not by_author:
            return
        label = merge(by_author)
        self.slices[slice_of(by_author)] += sign
        if label is None:
            self.passed += sign
            return
        self.labelled += sign
        self.imported += sign * answers_that_count(by_author)[0].is_imported
        if isinstance(label, str):  # outlines, whose classes are not counted
            return
        present = [label] if isinstance(label, int) else [k for k, on in enumerate(label) if on]
        for k in present:
            self.labels[k] += sign


@dataclass(frozen=True)
class LabelState:
    """Where a labelling project stands.

    answers: id -> author -> the answer that stands. unreadable: samples that cannot be asked.
    measurements: in the order in which they were taken. closed: control answers are trained on.
    again: id -> why, of samples that are asked again and not answered since. copies: id -> the
    sample that it is a copy of. events: how many there are. tally: counts over all answers. data:
    where the data lie since they were moved, None where they were not. settled: samples whose label
    was asked again and given as before, and has not changed since. contents: id -> what the sample
    was when it was answered last (`contents.content_of`), where that was noted.
    """

    answers: Mapping[str, Mapping[str, Answer]] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    measurements: tuple[Measurement, ...] = ()
    closed: bool = False
    again: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    events: int = 0
    tally: Tally = field(default_factory=Tally)
    data: str | None = None
    settled: frozenset[str] = frozenset()
    contents: Mapping[str, str] = field(default_factory=dict)

    def labels(self, *, control: bool) -> dict[str, AnswerLabel]:
        """Return id -> label, merged over people: what the model is trained or measured on.

        control: of the samples of the control slice, or of all others.
        """
        merged_labels = {}
        for id_, by_author in self.answers.items():
            label = merge(by_author)
            if label is not None and (slice_of(by_author) == CONTROL) == control:
                merged_labels[id_] = label
        return merged_labels

    @property
    def advice(self) -> Mapping[str, Any] | None:
        """Return the record of the last advice; None without any, or with the control closed."""
        if self.closed:
            return None
        return next((m.advice for m in reversed(self.measurements) if m.advice is not None), None)

    def newest_of(self, author: str, count: int) -> list[Answer]:
        """Return the newest answers of a person that stand, the newest first."""
        ids = reversed(self.tally.by_author.get(author, {}))
        return [self.answers[id_][author] for id_ in islice(ids, count)]


def slice_of(by_author: Mapping[str, Answer]) -> str:
    """Return the slice for which a sample got its first label, or was passed first without one.

    A correction changes nothing of it: a label that was there before any person's is imported
    for good, and a control answer stays one, whatever is imported later.
    """
    labels = [answer for answer in by_author.values() if answer.label is not None]
    return min(labels or by_author.values(), key=lambda answer: answer.first).slice


def answers_that_count(by_author: Mapping[str, Answer]) -> list[Answer]:
    """Return the labels of a sample that decide on it, in the order in which they were given.

    People's labels count before imported ones. Where people gave none, imported labels count, but
    for those that a person looked at and passed: the imports from before the last pass.
    """
    answers = sorted(by_author.values(), key=lambda answer: answer.order)
    people = [answer for answer in answers if not answer.is_imported]
    labels = [answer for answer in people if answer.label is not None]
    if labels:
        return labels
    last_pass = people[-1].order if people else -1
    return [
        answer
        for answer in answers
        if answer.is_imported and answer.label is not None and answer.order > last_pass
    ]


def merge(by_author: Mapping[str, Answer]) -> AnswerLabel | None:
    """Return the label that most of a sample's answers that count give; of several, the one given
    first; None without one."""
    answers = answers_that_count(by_author)
    if not answers:
        return None
    votes = Counter(_key(answer.label) for answer in answers)
    most = max(votes.values())
    return next(answer.label for answer in answers if votes[_key(answer.label)] == most)


def _key(label: AnswerLabel | None) -> object:
    return tuple(label) if isinstance(label, list) else label
