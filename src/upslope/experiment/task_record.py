"""The options of a run's task: recorded when it begins, and compared whenever it is gone on with.

In Python a task is an object that no configuration names: without its record, a run would go on
under another augmentation or normalisation, and its cycles would not compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from upslope.datasets.base import Dataset
from upslope.experiment.plain_settings import settings_of
from upslope.files import json_digest
from upslope.ledger import Differences
from upslope.tasks.base import Normalises, Task

_ELSEWHERE = ("classes", "mean", "std")
"""Options that have an entry of their own in the record."""
_CLASS = "class"
"""The entry of its class, whose losses may be others under the same options."""
_SAME, _CLOSE = 1e-6, 0.02
"""Relative difference of two equal numbers, by rounding; part of a channel's deviation by which
statistics may differ, as those of images that another library has decoded."""


def task_options(task: Task) -> dict[str, Any]:
    """Return the class and the options of a task as a ledger holds them; of one that is no
    dataclass, what it holds as public attributes."""
    instance: Any = task
    kind = {_CLASS: type(task).__name__}
    if not is_dataclass(instance):
        return {**kind, **{k: v for k, v in settings_of(task).items() if k not in _ELSEWHERE}}
    options = {f.name: getattr(instance, f.name) for f in fields(instance)}
    return kind | {
        name: _plain(value)
        for name, value in options.items()
        if _is_plain(value) and name not in _ELSEWHERE
    }


def task_differences(info: Mapping[str, Any], task: Task, pool: Dataset) -> Differences:
    """Return what differs between a task and the one that a run began with: key -> (then, now).

    info: of the ledger. pool: as it is now; where it has changed, the statistics may differ.

    Options that came later are in no earlier record, and are passed over.
    """
    before, now = info.get("task", {}), task_options(task)
    differences = {
        f"task.{name}": (before[name], now[name])
        for name in before.keys() & now.keys()
        if not _is_same(before[name], now[name])
    }
    same_pool = info.get("probe", {}).get("pool_ids_sha256") == json_digest(list(pool.ids))
    if same_pool and isinstance(task, Normalises):
        differences |= _statistics_differences(info, task)
    return differences


def _statistics_differences(info: Mapping[str, Any], task: Normalises) -> Differences:
    deviations = [*info["std"], *task.std]
    room = _CLOSE * min(deviations, default=0.0)
    pairs = {"mean": (info["mean"], list(task.mean)), "std": (info["std"], list(task.std))}
    return {
        f"task.{name}": (then, now)
        for name, (then, now) in pairs.items()
        if len(then) != len(now) or any(abs(a - b) > room for a, b in zip(then, now, strict=True))
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)  # a ledger holds no other
    return value is None or isinstance(value, bool | int | str)


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _is_same(then: Any, now: Any) -> bool:
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(map(_is_same, then, now))
    if isinstance(then, float) or isinstance(now, float):
        return isinstance(now, int | float) and math.isclose(then, now, rel_tol=_SAME)
    return bool(then == now)
