"""Settings that explain and check themselves: help text and range live beside the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

from upslope.errors import ConfigError


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field whose metadata holds `help` and the limits that were given.

    `choices` lists every value allowed, None among them where None is allowed.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    metadata = {"help": help, **{k: v for k, v in limits.items() if v is not None}}
    return field(default=default, metadata=metadata)


_SIGNS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("at least", lambda x, y: x >= y),
    "gt": ("above", lambda x, y: x > y),
    "le": ("at most", lambda x, y: x <= y),
    "lt": ("below", lambda x, y: x < y),
}


def range_problems(settings: Any) -> list[str]:
    """One sentence for each field of a settings dataclass that is out of its range."""
    problems = []
    for f in fields(settings):
        value = getattr(settings, f.name)
        choices = f.metadata.get("choices")
        if choices is not None:
            if value not in choices:
                problems.append(f"Expected `{f.name}` to be one of {choices} but got {value!r}.")
            continue
        for sign, (words, holds) in _SIGNS.items():
            limit = f.metadata.get(sign)
            values = value if isinstance(value, tuple) else (value,)
            for v in values:
                number = isinstance(v, int | float) and not isinstance(v, bool)
                if limit is not None and (not number or not holds(v, limit)):
                    problems.append(f"Expected `{f.name}` to be {words} {limit} but got {v!r}.")
    return problems


def check_ranges(settings: Any, extra: list[str] | None = None) -> None:
    """Raise ConfigError naming every field out of range, all together."""
    problems = range_problems(settings) + (extra or [])
    if problems:
        raise ConfigError("\n".join(problems))
