"""The labels of an earlier run as the first labelled set of a new one.

    earlier = match_labels(read_run("runs/old"), splits, task)
    with Experiment("runs/new", ...) as run:
        run.begin_with(earlier)       # instead of the initial set; nothing is asked again

Samples are matched by their ids, classes by their names. What does not match is counted and told,
never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from upslope.counts import format_count
from upslope.datasets import recorded_root
from upslope.datasets.base import Dataset, place_of
from upslope.datasets.left_out import name_some
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError, DataError, RunError, SelectionError
from upslope.experiment.answers import differs, has_label, label_of, with_digests
from upslope.ledger import Event, Label, RunResult, State
from upslope.tasks.base import Task
from upslope.tasks.mask_answers import decode_mask

_ROW_NUMBER = re.compile(r"(.*\D)\d{5,}")
"""Ids that readers make where files have none: `row-00042`."""
_MOST_NAMES = 5


@dataclass(frozen=True)
class EarlierLabels:
    """Labels that a new run begins with.

    run: the folder of the earlier run. labels: id -> label, as the new run's ledger holds it, in
    the order of the pool. notes: sentences on what matched and what did not.
    """

    run: Path
    labels: Mapping[str, Label] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def first_events(
        self, path: Path, state: State, start: str | Mapping[str, Any], to_come: int, pool: Dataset
    ) -> list[Event]:
        """Return the events that begin a run with these labels; none where they have begun it.

        path, state: of the run. start: `experiment.start`. to_come: labels that later cycles ask
        for. pool: of the run.

        Raises: as `Experiment.begin_with` does.
        """
        source = str(self.run)
        if state.started:
            if state.labels_from != source:
                raise RunError(
                    f"Expected the run in {path} to have begun with the labels of {source} "
                    f"but it began with {state.labels_from or 'an initial set'}. Leave "
                    "--labels-from out to go on with it, or choose another folder."
                )
            return []
        if start != "random":
            raise ConfigError(
                "Expected one way to the first labels but got those of an earlier run and "
                f"`experiment.start`, {start!r}. Leave one of them out."
            )
        if to_come > (left := len(pool) - len(self.labels)):
            raise SelectionError(
                f"Expected `experiment.cycles` to ask for at most the {left:,} samples that are "
                f"left beside the {len(self.labels):,} labels taken over but it is {to_come:,}. "
                "Lower `experiment.budget` or `experiment.cycles`."
            )
        position = {id_: i for i, id_ in enumerate(pool.ids)}
        return [
            Event("asked", 0, {"ids": list(self.labels), "labels_from": source}),
            Event("labelled", 0, with_digests(pool, position, {"labels": dict(self.labels)})),
        ]


def match_labels(
    run: RunResult, splits: Splits, task: Task, root: str | None = None
) -> EarlierLabels:
    """Return the labels of a run, matched with the pool of another.

    run: as `read_run` gives it; finished or not. splits, task: those of the new run. root: where
    its data lie.

    Raises:
        DataError: no label matches, labels of another kind than the task takes, or ids that count
            the rows of other files, so that the same id is another sample.
    """
    pool = splits.pool
    position = {id_: i for i, id_ in enumerate(pool.ids)}
    _check_ids_name_samples(run, pool, root)
    inside = [id_ for id_ in run.labels if id_ in position]
    names = tuple(run.info.get("classes", ()))
    labels: dict[str, Label] = {}
    other_classes: Counter[str] = Counter()
    without: list[str] = []
    for id_ in sorted(inside, key=position.__getitem__):
        old = run.labels[id_]
        if old is None and not has_label(pool, position[id_]):
            without.append(id_)
            continue
        answer = None if old is None else _answer(old, names, pool.classes, run)
        if isinstance(answer, str) and answer not in pool.classes:
            other_classes[answer] += 1
            continue
        labels[id_] = label_of(pool, task, position[id_], answer)
    outside = [id_ for id_ in run.labels if id_ not in position]
    if not labels:
        raise DataError(_no_match(run, pool, outside, other_classes, without))
    notes = _notes(run, splits, labels, outside, other_classes, without)
    return EarlierLabels(run.path.absolute(), labels, notes)


def _check_ids_name_samples(run: RunResult, pool: Dataset, root: str | None) -> None:
    """Raise DataError where ids count the rows of files, and these are not the earlier run's."""
    stems = {m.group(1) if (m := _ROW_NUMBER.fullmatch(id_)) else "" for id_ in pool.ids}
    place = recorded_root(run.config, run.info)
    if len(stems) == 1 and "" not in stems and place != root:
        raise DataError(
            f"Expected ids that name samples but those of {place_of(pool)}, {pool.ids[0]!r} and so "
            f"on, count its rows, and the run in {run.path} read {place or run.info.get('data')}: "
            "the same id may be another sample. Name a column of ids with `data.id`, in both."
        )


def _answer(old: Any, names: Sequence[str], classes: Sequence[str], run: RunResult) -> Any:
    """The answer that a recorded label is, in the names of the earlier run; of a mask with a class
    that there is not here, the name of that class.

    Raises:
        DataError: labels or numbers that the new run asks for and the earlier one did not.
    """
    if isinstance(old, int):
        return names[old]
    if isinstance(old, str):
        return _mask_here(old, names, classes)
    if missing := [name for name in classes if name not in names]:
        raise DataError(
            f"Expected the run in {run.path} to have answered for each of "
            f"{', '.join(map(repr, classes[:_MOST_NAMES]))} but it asked nothing about "
            f"{', '.join(map(repr, missing[:_MOST_NAMES]))}. Leave these out, or begin without its "
            "labels."
        )
    by_name = dict(zip(names, old, strict=True))
    if all(isinstance(value, float) for value in old):
        return [by_name[name] for name in classes]
    return [name for name in classes if by_name[name]]


def _mask_here(text: str, names: Sequence[str], classes: Sequence[str]) -> Any:
    """The mask that is recorded as text, (h, w), with the positions of the classes here, or the
    name of a class in it that is not here. Numbers of no class, of pixels that count nowhere, stay.
    """
    mask = decode_mask(text)
    here = np.arange(256, dtype=np.int64)
    for old in np.unique(mask).tolist():
        if old < len(names):
            if names[old] not in classes:
                return names[old]
            here[old] = classes.index(names[old])
    return here[mask]


def _no_match(
    run: RunResult,
    pool: Dataset,
    outside: Sequence[str],
    other_classes: Mapping[str, int],
    without: Sequence[str],
) -> str:
    if not run.labels:
        return f"Expected labels in the run in {run.path} but it has none yet."
    if other_classes:
        return (
            f"Expected labels of the classes {', '.join(pool.classes[:_MOST_NAMES])} in the run in "
            f"{run.path} but they are of {', '.join(list(other_classes)[:_MOST_NAMES])}. Name the "
            "classes alike."
        )
    if without:
        return (
            f"Expected {place_of(pool)} to hold the labels that the run in {run.path} took from "
            f"its data set, but it has none of {without[0]!r}. Bring the masks along."
        )
    return (
        f"Expected ids of the run in {run.path} to be in {place_of(pool)} but none of its "
        f"{format_count(len(outside), 'label')} matches: it has {name_some(outside)}, the pool "
        f"{name_some(pool.ids)}. Ids are paths from the root: give a root from which they are the "
        "same."
    )


def _notes(
    run: RunResult,
    splits: Splits,
    labels: Mapping[str, Label],
    outside: Sequence[str],
    other_classes: Mapping[str, int],
    without: Sequence[str],
) -> tuple[str, ...]:
    pool = splits.pool
    position = {id_: i for i, id_ in enumerate(pool.ids)}
    test_ids = {*splits.test.ids, *(splits.validation.ids if splits.validation is not None else ())}
    held_out = [id_ for id_ in outside if id_ in test_ids]
    ids = [id_ for id_ in outside if id_ not in test_ids]
    notes = [
        f"{len(labels):,} of {format_count(len(run.labels), 'label')} of {run.path} taken, matched "
        "by id"
    ]
    if held_out:
        notes.append(
            f"{format_count(len(held_out), 'label')} left out, of samples that are set apart to "
            f"test or validate here: {name_some(held_out)}"
        )
    if ids:
        notes.append(
            f"{format_count(len(ids), 'label')} left out, whose ids are not in "
            f"{place_of(pool)}: {name_some(ids)}"
        )
    if other_classes:
        class_words = ", ".join(f"{name!r} ({n:,})" for name, n in sorted(other_classes.items()))
        notes.append(f"labels left out, of classes that there are not here: {class_words}")
    if without:
        notes.append(
            f"{format_count(len(without), 'label')} left out, which the data set held then and "
            f"does not now: {name_some(without)}"
        )
    if differing := [i for i in labels if differs(pool, position[i], labels[i])]:
        notes.append(
            f"{format_count(len(differing), 'label')} taken that the data set itself has "
            f"otherwise: {name_some(differing)}"
        )
    if run.passed:
        forms = "sample that was skipped there", "samples that were skipped there"
        notes.append(f"{format_count(len(run.passed), *forms)} may be asked again")
    return tuple(notes)
