"""Named things with options: frozen dataclasses that check their own fields, kept in tables.

A strategy or a signal is a frozen dataclass; its fields are its options, each declared with
`upslope.fields.option`. They are checked when an instance is made, by hand or by name, so a wrong
value is told at once and not after an hour of training.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from upslope.errors import ConfigError
from upslope.fields import range_problems

T = TypeVar("T", bound="Options")


@dataclass(frozen=True)
class Options:
    """Base of everything that has a name in a table and options.

    Raises:
        ConfigError: options have the wrong type, or are out of range; all such faults together.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        faults = _type_problems(self) or range_problems(self)
        if faults:
            raise ConfigError(f"{self.name}: " + " ".join(faults))


def build(table: Mapping[str, type[T]], kind: str, name: str, options: Mapping[str, Any]) -> T:
    """The entry `name` of `table`, with these options.

    Raises:
        ConfigError: no such entry, no such option, or a value that the option may not take.
    """
    if name not in table:
        raise ConfigError(
            f"Expected a {kind} among {', '.join(table)} but got {name!r}.{_closest(name, table)}"
        )
    known = [f.name for f in fields(table[name])]
    unknown = [key for key in options if key not in known]
    if unknown:
        has = f"has the options {', '.join(known)}" if known else "takes no options"
        hints = "".join(_closest(key, known) for key in unknown)
        raise ConfigError(f"The {kind} {name} {has} but got {', '.join(unknown)}.{hints}")
    return table[name](**options)


def options_in_words(entry: type[Options]) -> str:
    """`norm=global: which norm ...`, one option a line."""
    return "\n".join(f"{f.name}={f.default}: {f.metadata['help']}" for f in fields(entry))


def _closest(name: str, among: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(among), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _type_problems(entry: Options) -> list[str]:
    """One sentence for each field whose value is not of its annotated type."""
    hints = get_type_hints(type(entry))
    problems = []
    for f in fields(entry):
        value = getattr(entry, f.name)
        kinds = get_args(hints[f.name]) or (hints[f.name],)
        # An int serves where a float is asked for; a bool is no number.
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if not fits or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("nothing" if k is NoneType else k.__name__ for k in kinds)
            problems.append(f"Expected `{f.name}` to be of type {names} but got {value!r}.")
    return problems
