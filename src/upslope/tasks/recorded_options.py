"""The options of a task as a record holds them, by which another task is told from it."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from upslope.plain_settings import settings_of
from upslope.tasks.base import Task

_ELSEWHERE = ("classes", "mean", "std")
"""Options that have an entry of their own in a record."""
_CLASS = "class"
"""The entry of its class, whose losses may be others under the same options."""


def task_options(task: Task) -> dict[str, Any]:
    """Return the class and the options of a task as a record holds them; of one that is no
    dataclass, what it holds as public attributes.

    task: of the registry, or of the user's own.
    """
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


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)  # a ledger holds no other
    return value is None or isinstance(value, bool | int | str)


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
