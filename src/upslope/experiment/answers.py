"""The answers of annotators, checked as a whole before one of them is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.counts import first_lines
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.base import Dataset, HasLabels, HasPairs
from upslope.datasets.subset import origin
from upslope.errors import DataError
from upslope.experiment.labels import as_target, mask_digest, own_label
from upslope.ledger import Event, Label, State
from upslope.tasks.answers import MaskNeededError, class_label
from upslope.tasks.base import TakesAnswers, Task

_MOST_NAMES = 5


@dataclass(frozen=True)
class AnswerCounts:
    """How many answers were recorded.

    labelled: new ones; late: those among them whose samples had been passed, and replaced by
    others, so that they come on top of what a cycle asks for. withdrawn: answers and passes that
    were taken back, and no other answer given.
    """

    labelled: int = 0
    corrected: int = 0
    passed: int = 0
    late: int = 0
    withdrawn: int = 0

    @classmethod
    def of(cls, events: Sequence[Event]) -> AnswerCounts:
        """The counts that events record."""
        content = {"labelled": "labels", "corrected": "labels", "passed": "ids"}
        counts = {e.kind: len(e.body[content[e.kind]]) for e in events if e.kind in content}
        ids_labelled = {i for e in events if e.kind == "labelled" for i in e.body["labels"]}
        for event in events:
            if event.kind == "taken_back":
                counts["late"] = len(event.body["asked"])
                ids_of_event = event.body["labels"].keys() | event.body["passed"].keys()
                counts["withdrawn"] = len(ids_of_event - ids_labelled)
        return cls(**counts)


def events_of(
    pool: Dataset,
    task: Task,
    position: Mapping[str, int],
    state: State,
    labels: Mapping[str, Any],
    passes_given: Mapping[str, str],
    withdrawals: Sequence[str] = (),
) -> list[Event]:
    """Return the events that record these answers; none for what is recorded already.

    position: id -> place in the pool. labels: id -> answer; None: as the data set says, and where
    it has no label that an annotator could give, a pass. passes_given: id -> reason. A sample that
    was passed may be answered after all, also where another was asked in its place. withdrawals:
    ids whose answers or passes are taken back.

    Raises:
        DataError: ids that were not asked; answers that are no labels. All are named, and nothing
            is to be recorded.
    """
    answers = _sort(pool, task, position, state, labels)
    passes = {**passes_given, **dict.fromkeys(answers.unlabelled, "")}
    refuse(
        [
            *_answered_twice(labels, passes_given, withdrawals),
            *_without_answer(state, position, withdrawals),
            *answers.problems,
            *_wrong_passes(passes, passes_given, position, state),
        ]
    )
    passes = {i: reason for i, reason in passes.items() if i not in state.passed}
    before = {i: state.labels[i] for i in answers.corrections}
    back = [id_ for id_ in answers.new if id_ in state.passed]
    withdrawal = _taken_back(state, [*back, *withdrawals])
    late = [id_ for id_ in back if id_ not in state.owed]
    corrections = {"labels": answers.corrections, "before": before}
    bodies = (
        ("taken_back", {**withdrawal, "asked": late}, [*back, *withdrawals]),
        ("labelled", with_digests(pool, position, {"labels": answers.new}), answers.new),
        ("corrected", with_digests(pool, position, corrections), answers.corrections),
        ("passed", {"ids": passes}, passes),
    )
    return [Event(kind, state.cycle, body) for kind, body, content in bodies if content]


@dataclass(frozen=True)
class _SortedAnswers:
    """Answers by what they are to a run.

    new, corrections: id -> label. unlabelled: ids to which the data set was to give a label that it
    has not. problems: of those that are no labels, or were not asked for.
    """

    new: dict[str, Label] = field(default_factory=dict)
    corrections: dict[str, Label] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _sort(
    pool: Dataset,
    task: Task,
    position: Mapping[str, int],
    state: State,
    labels: Mapping[str, Any],
) -> _SortedAnswers:
    """Return the answers by what they are; arguments as of `events_of`."""
    answers = _SortedAnswers()
    for id_, answer in labels.items():
        if reason := _why_not(id_, position, state):
            answers.problems.append(reason)
            continue
        if answer is None and not has_label(pool, position[id_]) and not _draws_masks(pool, task):
            answers.unlabelled.append(id_)
            continue
        try:
            label = label_of(pool, task, position[id_], answer)
        except DataError as error:
            answers.problems.append(f"{id_!r}: {error}")
            continue
        if id_ not in state.labels:
            answers.new[id_] = label
        elif not _same(pool, position[id_], label, state.labels[id_], state.masks.get(id_)):
            answers.corrections[id_] = label
    return answers


def _answered_twice(
    labels: Mapping[str, Any], passes: Mapping[str, str], withdrawals: Sequence[str]
) -> list[str]:
    """A sentence on each id that a call both labels, passes or takes back."""
    ids = [*labels, *passes, *dict.fromkeys(withdrawals)]
    return [
        f"Expected one answer for {id_!r} but it is labelled, passed or taken back in the same "
        "call. Leave one of these out."
        for id_, count in Counter(ids).items()
        if count > 1
    ]


def _wrong_passes(
    passes: Mapping[str, str],
    passes_given: Mapping[str, str],
    position: Mapping[str, int],
    state: State,
) -> list[str]:
    """The problem of each sample that cannot be passed; arguments as of `events_of`."""
    with_answer = [
        f"Expected {id_!r} to be without an answer, so that it could be passed, but it has one. "
        "Take the answer back first."
        for id_ in passes
        if id_ in state.labels
    ]
    not_asked = [
        reason
        for id_ in passes_given
        if id_ not in state.passed and (reason := _why_not(id_, position, state))
    ]
    return with_answer + not_asked


def with_digests(
    pool: Dataset, position: Mapping[str, int], body: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of an event, with the digests of the labels that the data set holds.

    position: id -> place in the pool. body: with `labels`.
    """
    masks = {
        id_: mask_digest(pool.targets([position[id_]])[0])
        for id_, label in body["labels"].items()
        if label is None
    }
    return {**body, **({"masks": masks} if masks else {})}


def taken_back(state: State, position: Mapping[str, int], ids: Sequence[str]) -> Event:
    """Return the event that takes back the labels, or the passes, of these ids.

    Raises:
        DataError: ids that have neither.
    """
    refuse(_without_answer(state, position, ids))
    return Event("taken_back", state.cycle, _taken_back(state, ids))


def _without_answer(state: State, position: Mapping[str, int], ids: Sequence[str]) -> list[str]:
    """A sentence on each id that has no answer to take back."""
    return [
        f"Expected {id_!r} to have an answer to take back but it "
        f"{'has none' if id_ in position else 'is not in the pool'}."
        for id_ in ids
        if id_ not in state.labels and id_ not in state.passed
    ]


def _taken_back(state: State, ids: Sequence[str]) -> dict[str, Any]:
    return {
        "labels": {i: state.labels[i] for i in ids if i in state.labels},
        "passed": {i: state.passed[i] for i in ids if i in state.passed},
    }


def has_label(pool: Dataset, index: int) -> bool:
    """Tell whether the data set itself has a label of this sample; reads no mask."""
    source, place = origin(pool, index)
    if isinstance(source, HasLabels):
        return bool(source.labels[place] != UNKNOWN)
    try:
        pool.targets([index])
    except DataError:
        return False
    return True


def refuse(problems: Sequence[str]) -> None:
    """Raise DataError with the first problems, if there are any."""
    if problems:
        lines = first_lines(problems, _MOST_NAMES)
        raise DataError(f"{lines}\nNo answer of this call was recorded.")


def _why_not(id_: str, position: Mapping[str, int], state: State) -> str | None:
    """Why no answer for this id can be recorded; None where one can."""
    if id_ in state.pending or id_ in state.labels:
        return None
    if id_ not in position:
        return f"Expected ids of the pool but got {id_!r}."
    if id_ in state.passed:
        return None
    return f"Expected ids that were asked but {id_!r} was not."


def _draws_masks(pool: Dataset, task: Task) -> bool:
    """The labels are masks, which annotators draw and no answer holds."""
    try:
        if isinstance(task, TakesAnswers):
            task.label(None, pool.classes)
    except MaskNeededError:
        return True
    except DataError:
        pass
    return False


def label_of(pool: Dataset, task: Task, index: int, answer: Any) -> Label:
    """Return the label that an answer is, as the ledger holds it; None for the data set's mask.

    index: the sample's place in the pool. answer: as `Experiment.tell` takes it.

    Raises:
        DataError: no label of the task's.
    """
    if answer is None:
        target = pool.targets([index])[0]  # raises DataError where there is none, or a damaged one
        return own_label(pool.ids[index], target, pool.classes)
    if isinstance(answer, str | Path) and isinstance(origin(pool, index)[0], HasPairs):
        raise MaskNeededError(
            f"Expected None, as files of masks have numbers of their own in {pool.name}, or an "
            f"array of positions among its classes, but got {str(answer)!r}. Draw the mask into "
            "the data set."
        )
    if isinstance(task, TakesAnswers):
        label = task.label(answer, pool.classes)
    else:
        label = class_label(answer, pool.classes)
    if isinstance(label, str) and as_target(label).shape != pool.input_shape[1:]:
        raise DataError(
            f"Expected a mask of its image's height and width, {tuple(pool.input_shape[1:])}, but "
            f"got {tuple(as_target(label).shape)}."
        )
    shape = tuple(pool.targets([index]).shape[1:]) if has_label(pool, index) else None
    if shape is not None and shape != tuple(as_target(label).shape):
        raise DataError(
            f"Expected None, as the target of shape {shape} is the data set's to say, but got "
            f"{answer!r}."
        )
    return label


def differs(pool: Dataset, index: int, label: Label) -> bool:
    """Tell whether the data set has a label of its own for a sample, and it is another.

    index: the sample's place in the pool. label: as the ledger holds it.
    """
    if label is None or not has_label(pool, index):
        return False
    own_target, label_target = pool.targets([index])[0], as_target(label)
    return own_target.shape != label_target.shape or bool((own_target != label_target).any())


def _same(pool: Dataset, index: int, one: Label, other: Label, digest: str | None) -> bool:
    """Two labels of a sample are equal; None stands for the data set's own.

    digest: of the data set's own when `other` was recorded; None where nobody knows.
    """
    if one is None and other is None and digest is not None:
        return mask_digest(pool.targets([index])[0]) == digest
    if one == other:
        return True
    a, b = (
        pool.targets([index])[0] if label is None else as_target(label) for label in (one, other)
    )
    return a.shape == b.shape and bool((a == b).all())
