"""The labelled set that a query is given, in whatever form a program holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from upslope.batches import read_targets
from upslope.counts import first_lines
from upslope.datasets.array_form import Layout
from upslope.datasets.base import Dataset, HasLabels
from upslope.datasets.joined import JoinedDataset
from upslope.datasets.map_style import MapStyleDataset, read_item, target_of
from upslope.datasets.pools import as_pool
from upslope.datasets.target_values import as_array
from upslope.datasets.wrapper import DatasetWrapper
from upslope.errors import ConfigError, DataError
from upslope.experiment.answers import has_label, label_of, refuse
from upslope.experiment.checks import as_tensor, positions
from upslope.experiment.labels import LabelledPool, TargetsOf, oracle
from upslope.ledger import Label
from upslope.scoring import LabelledSet
from upslope.tasks.base import NamesClasses, Task

_MOST_NAMES = 5
_MOST_LOOKED_AT = 8
"""Labelled samples whose targets are looked at: each may be a file of a mask."""


@dataclass(frozen=True)
class PoolWithLabels:
    """A pool with what is labelled of it.

    samples: the pool, with labelled samples from elsewhere behind it where there are any.
    positions: of the labelled samples there, in order. labels: id -> label; None where the data
    set is to be asked.
    """

    samples: Dataset
    positions: tuple[int, ...]
    labels: Mapping[str, Label]

    def labelled_set(self) -> LabelledSet:
        """Return positions and targets, as signals are fitted on."""
        tensor = self.label_tensor()
        targets = TargetsOf(LabelledPool(self.samples, self.labels), self.positions)
        return LabelledSet(self.positions, targets if tensor is None else tensor)

    def label_tensor(self) -> Tensor | None:
        """(n_labelled,) where each label is one number, else None."""
        return as_tensor([self.labels[self.samples.ids[i]] for i in self.positions])


def read_labelled(
    pool: Dataset, labelled: Any, task: Task, layout: Layout, size: int | None
) -> PoolWithLabels:
    """Return the labelled samples; see `upslope.query` for what `labelled` may be.

    Raises:
        ConfigError: another kind of thing.
        DataError: ids or positions that are not in the pool, or come twice; answers that are no
            labels.
    """
    position = positions(pool.ids)
    if labelled is None:
        return PoolWithLabels(pool, (), {})
    if isinstance(labelled, Mapping):
        answers = {place_of(key, position): answer for key, answer in labelled.items()}
        _refuse_twice(answers, len(labelled))
        return _targets_of_answers(pool, answers, task)
    if _is_pair(labelled) or _is_map_style(labelled):
        return _beside(pool, labelled, task, layout, size)
    places = [place_of(key, position) for key in _list_keys(labelled, len(pool))]
    _refuse_twice(set(places), len(places))
    if isinstance(pool, MapStyleDataset) and pool.values is None:
        own_targets = {i: _own_target(pool, i) for i in places}
        if all(answer is not None for answer in own_targets.values()):
            return _targets_of_answers(pool, own_targets, task)
    ids = [pool.ids[i] for i in sorted(places)]
    has_labels = pool.classes and all(has_label(pool, i) for i in places)
    if has_labels:
        read_targets(pool, task, sorted(places)[:_MOST_LOOKED_AT])
    labels = oracle(pool, position, ids) if has_labels else dict.fromkeys(ids, None)
    return PoolWithLabels(pool, tuple(sorted(places)), labels)


def _own_target(pool: MapStyleDataset, index: int) -> Any:
    where = f"{pool.name} ({pool.ids[index]})"
    return target_of(read_item(pool.items, index, where), pool.keys.target, where)


def _targets_of_answers(pool: Dataset, answers: Mapping[int, Any], task: Task) -> PoolWithLabels:
    labels: dict[str, Label] = {}
    problems: list[str] = []
    pool_names = _NamedPool(pool, task)
    for index in sorted(answers):
        try:
            labels[pool.ids[index]] = label_of(pool_names, task, index, answers[index])
        except DataError as error:
            problems.append(f"{pool.ids[index]!r}: {error}")
    if problems:
        raise DataError(first_lines(problems, _MOST_NAMES))
    return PoolWithLabels(pool, tuple(sorted(answers)), labels)


class _NamedPool(DatasetWrapper):
    """The pool, with the class names of the task where it has none of its own."""

    def __init__(self, pool: Dataset, task: Task) -> None:
        super().__init__(pool)
        if isinstance(task, NamesClasses):
            self.classes = tuple(pool.classes) or task.class_names
        if isinstance(pool, HasLabels) and pool.classes:
            self.labels = pool.labels

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return the targets of the pool, (n, ...). Raises DataError where it has none."""
        if not self.dataset.classes:
            raise DataError("Expected answers, since the samples of the pool have no targets.")
        return super().targets(indices)


def place_of(key: Any, position: Mapping[str, int]) -> int:
    """Return the position that an id or a position names. Raises DataError for one of neither."""
    if isinstance(key, str):
        if key in position:
            return position[key]
        raise DataError(f"Expected ids of the pool in `labelled` or `without` but got {key!r}.")
    number = key.item() if hasattr(key, "item") else key
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(position):
        raise DataError(
            f"Expected `labelled` and `without` to name samples by id, or by position from 0 to "
            f"{len(position) - 1}, but got {number!r}."
        )
    return number


def _refuse_twice(distinct: Any, count: int) -> None:
    if len(distinct) != count:
        raise DataError(
            f"Expected distinct ids or positions in `labelled` but {count - len(distinct)} of "
            f"{count} repeat an earlier one. Labels are given with their ids or positions: "
            "labelled={position: label}."
        )


def _list_keys(labelled: Any, size: int) -> list[Any]:
    if isinstance(labelled, str) or not isinstance(labelled, Sequence | Set | np.ndarray | Tensor):
        raise ConfigError(
            "Expected `labelled` to be a mapping of ids or positions to labels, ids or positions, "
            f"(inputs, targets) or a data set but got {type(labelled).__name__}."
        )
    values = (
        list(labelled)
        if isinstance(labelled, Sequence | Set)
        else as_array(labelled, "`labelled`").tolist()
    )
    truths = [value for value in values if isinstance(value, bool | np.bool_)]
    if truths and (len(truths) != size or len(values) != size):
        raise DataError(
            f"Expected a mask of one truth value for each of the {size} samples of the pool, or "
            f"positions, in `labelled` but got {len(values)} values."
        )
    return np.flatnonzero(values).tolist() if truths else values


def _is_pair(value: Any) -> bool:
    """(inputs, targets): a tuple whose first part has samples of some shape."""
    return isinstance(value, tuple | list) and len(value) == 2 and getattr(value[0], "ndim", 0) > 1


def _is_map_style(value: Any) -> bool:
    plain = isinstance(value, Sequence | Set | np.ndarray | Tensor)
    return not plain and hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _beside(
    pool: Dataset, labelled: Any, task: Task, layout: Layout, size: int | None
) -> PoolWithLabels:
    """Labelled samples that are not in the pool."""
    if _is_pair(labelled):
        second = as_pool(labelled[0], "labelled", layout=layout)
        answers = _targets(labelled[1], len(second))
    else:
        second = as_pool(labelled, "labelled", layout=layout, size=size)
        if not isinstance(second, MapStyleDataset):
            raise ConfigError(
                "Expected labelled samples beside the pool as (inputs, targets) or a data set of "
                f"torch but got {type(labelled).__name__}."
            )
        answers = [_own_target(second, i) for i in range(len(second))]
    both_pools = JoinedDataset(pool, second)
    places = range(len(pool), len(both_pools))
    return _targets_of_answers(both_pools, dict(zip(places, answers, strict=True)), task)


def _targets(targets: Any, count: int) -> list[Any]:
    values: list[Any] = as_array(targets, "the targets of `labelled`").tolist()
    if len(values) != count:
        refuse(
            [f"Expected {count} targets in `labelled`, one for each input, but got {len(values)}."]
        )
    return values
