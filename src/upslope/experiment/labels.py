"""What annotators said, laid over the pool: the only targets that training sees."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.datasets.base import Dataset
from upslope.errors import DataError

_SHOWN = 5


class LabelledPool:
    """The pool, with targets from `labels`: id -> label, None where the data set holds it."""

    def __init__(self, pool: Dataset, labels: Mapping[str, int | None]) -> None:
        self._pool = pool
        self._labels = labels
        self.name = pool.name
        self.ids = pool.ids
        self.classes = pool.classes
        self.input_shape = pool.input_shape
        self.resident = pool.resident

    def __len__(self) -> int:
        return len(self._pool)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, *input_shape)."""
        return self._pool.inputs(indices)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n,) labels as told, or (n, ...) the data set's own."""
        told = [self._labels[self.ids[i]] for i in indices]
        if all(label is None for label in told):
            return self._pool.targets(indices)
        known = [
            int(self._pool.targets([i])) if label is None else label
            for i, label in zip(indices, told, strict=True)
        ]
        return torch.tensor(known, dtype=torch.int64)


@dataclass(frozen=True)
class TargetsOf:
    """The targets of these samples, read when asked for: masks of a whole set may be large."""

    pool: LabelledPool
    indices: Sequence[int]

    def __getitem__(self, places: list[int], /) -> Tensor:
        """(n, ...)."""
        return self.pool.targets([self.indices[i] for i in places])


def oracle(pool: Dataset, position: Mapping[str, int], ids: Sequence[str]) -> dict[str, int | None]:
    """The data set's own answer: labels, or None where a target is more than one number.

    Raises:
        DataError: nobody knows a label, or it is not one of the classes.
    """
    if not ids:
        return {}
    targets = pool.targets([position[i] for i in ids])
    if targets.dim() > 1:
        return dict.fromkeys(ids, None)
    answer: dict[str, int | None] = dict(zip(ids, targets.tolist(), strict=True))
    _refuse([p for i, label in answer.items() if (p := _range_problem(i, label, pool.classes))])
    return answer


def checked(
    pool: Dataset,
    position: Mapping[str, int],
    pending: Sequence[str],
    known: Mapping[str, Any],
    told: Mapping[str, Any],
) -> dict[str, int | None]:
    """The labels told, if every one of them can be recorded.

    Raises:
        DataError: ids that were not asked, or are labelled already; labels out of range. All are
            named, and nothing is to be recorded.
    """
    waiting = set(pending)
    problems: list[str] = []
    labels: dict[str, int | None] = {}
    for id_, label in told.items():
        if id_ not in waiting:
            problems.append(_why_not(id_, position, known))
            continue
        if label is None:
            pool.targets([position[id_]])  # raises DataError where the data set has none
            labels[id_] = None
            continue
        if shape := _shape_of_target(pool, position[id_]):
            problems.append(
                f"Expected None for {id_!r}, whose target of shape {shape} is the data set's to "
                f"say, but got {label!r}."
            )
            continue
        try:
            if isinstance(label, bool):
                raise TypeError
            labels[id_] = operator.index(label)
        except TypeError:
            problems.append(
                f"Expected the label of {id_!r} to be a whole number but got {label!r}."
            )
            continue
        problem = _range_problem(id_, labels[id_], pool.classes)
        problems += [problem] if problem else []
    _refuse(problems)
    return labels


def _shape_of_target(pool: Dataset, index: int) -> tuple[int, ...]:
    """That of a mask, a label set or numbers; () for a class, or where nobody knows it."""
    try:
        return tuple(pool.targets([index]).shape[1:])
    except DataError:
        return ()


def _why_not(id_: str, position: Mapping[str, int], known: Mapping[str, Any]) -> str:
    if id_ not in position:
        return f"Expected ids of the pool but got {id_!r}."
    if id_ in known:
        return f"Expected {id_!r} to be without a label but it has one, {known[id_]}."
    return f"Expected ids that were asked but {id_!r} was not."


def _range_problem(id_: str, label: Any, classes: Sequence[str]) -> str | None:
    if 0 <= label < len(classes):
        return None
    return (
        f"Expected the label of {id_!r} to be between 0 and {len(classes) - 1}, one of the "
        f"{len(classes)} classes, but got {label}."
    )


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more." if len(problems) > _SHOWN else ""
        raise DataError(
            "\n".join(problems[:_SHOWN]) + more + "\nNo label of this call was recorded."
        )
