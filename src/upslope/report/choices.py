"""The choices of strategies, read from the ledgers of their runs: picks, balance, overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from upslope.evaluation.curves import Array
from upslope.ledger import RunResult
from upslope.report.study import Study


@dataclass(frozen=True)
class Pick:
    """A sample that was asked. score: of the strategy, None where it has none. guess: what the
    model predicted, as labels are recorded, None where that was not; confidence: its probability.
    label: what the annotator said, None where the data set holds it or nobody has said."""

    id: str
    score: float | None = None
    guess: Any = None
    confidence: float | None = None
    label: Any = None


@dataclass(frozen=True)
class Cycle:
    """One selection. labels: how many there were before it. picks: in order of choice. histogram:
    of the scores of all candidates, as `CycleRecord.histogram`. candidates: how many were scored.
    """

    labels: int
    picks: tuple[Pick, ...]
    histogram: Mapping[str, Any] | None
    candidates: int


def cycles_of(result: RunResult) -> tuple[Cycle, ...]:
    """Return the selections of a run; the initial set is none of them."""
    return tuple(
        Cycle(
            record.n_labelled,
            tuple(
                Pick(
                    id_,
                    _at(record.scores, i),
                    _at(record.guesses, i),
                    _at(record.confidences, i),
                    result.labels.get(id_),
                )
                for i, id_ in enumerate(record.asked)
            ),
            record.histogram,
            record.n_candidates,
        )
        for record in result.cycles
        if record.asked
    )


def class_counts(result: RunResult, classes: int) -> Array | None:
    """Return how many labels of each class there are at each training, (n_cycles, classes).

    A sample with a label set counts for each label that it has. None where labels are no classes.
    """
    rows = []
    counts = np.zeros(classes)
    selections = [result.initial, *(record.asked for record in result.cycles)]
    # One that went back to the pool without an answer may be asked once more.
    last_place = {id_: place for place, ids in enumerate(selections) for id_ in ids}
    for place, ids in enumerate(selections[: len(result.cycles)]):
        for id_ in ids:
            if last_place[id_] != place or id_ not in result.labels:
                continue
            shares = _shares(result.labels[id_], classes)
            if shares is None:
                return None
            counts = counts + shares
        rows.append(counts)
    return np.stack(rows) if rows else None


def overlaps(study: Study, names: Sequence[str]) -> Array | None:
    """Return the share of picks that two strategies have in common, (k, k), the mean over seeds.

    |A and B| / |A or B| of all picks of two complete runs of one seed, without the initial set. NaN
    on the diagonal, and where two have no seed in common. None where nothing was recorded.
    """
    picks = {
        name: {
            seed: frozenset(id_ for record in run.record.cycles for id_ in record.asked)
            for seed, run in study.complete(name).items()
            if run.record is not None
        }
        for name in names
    }
    shares = np.full((len(names), len(names)), np.nan)
    for i, j in combinations(range(len(names)), 2):
        one, other = picks[names[i]], picks[names[j]]
        pairs = [(one[seed], other[seed]) for seed in one if seed in other]
        values = [len(a & b) / len(a | b) for a, b in pairs if a | b]
        if values:
            shares[i, j] = shares[j, i] = float(np.mean(values))
    return shares if np.isfinite(shares).any() else None


def common_seed(study: Study, names: Sequence[str]) -> int | None:
    """Return the seed that most strategies have a complete run of; the smallest among equals."""
    counts: dict[int, int] = {}
    for name in names:
        for seed, run in study.complete(name).items():
            if run.record is not None:
                counts[seed] = counts.get(seed, 0) + 1
    return min(counts, key=lambda seed: (-counts[seed], seed)) if counts else None


def _shares(label: Any, classes: int) -> Array | None:
    """One label as counts of classes; None for numbers, masks and labels that nobody recorded."""
    counts = np.zeros(classes)
    if isinstance(label, int) and 0 <= label < classes:
        counts[label] = 1
        return counts
    is_set = isinstance(label, list) and len(label) == classes
    if is_set and all(isinstance(entry, int) and entry in (0, 1) for entry in label):
        return np.asarray(label, dtype=np.float64)
    return None


def _at(values: Sequence[Any] | None, index: int) -> Any:
    return values[index] if values is not None and index < len(values) else None
