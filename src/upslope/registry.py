"""The explicit tables behind `datasets`, `models` and `tasks`: a name, a callable, its options.

A callable's keyword parameters are its options. Types, ranges and help texts are written once,
in the signature, as `Annotated[float, Field(ge=0, lt=1, description="...")]`.
"""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from upslope.errors import ConfigError
from upslope.type_words import type_members, type_name, type_words


@dataclass(frozen=True)
class OptionInfo:
    """One option as `upslope list` shows it."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Description:
    """One line of a table as `upslope list` shows it."""

    name: str
    summary: str
    options: tuple[OptionInfo, ...]


@dataclass(frozen=True)
class UnknownOption:
    """An option that there is not. where: what was to take it, as "data set 'digits'"; known: the
    names of those that there are."""

    where: str
    key: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        wanted_words = ", ".join(f"`{name}`" for name in self.known) or "none"
        hint = did_you_mean(self.key, self.known) or "."
        return f"{self.where}: Expected options among {wanted_words} but got `{self.key}`{hint}"

    def at(self, path: str, also: tuple[str, ...] = ()) -> str:
        """Return the message of a configuration whose section is `path`; also: its other keys."""
        known_names = (*also, *self.known)
        hint = did_you_mean(self.key, known_names) or "."
        names = ", ".join(f"`{name}`" for name in known_names)
        wanted_words = f"Expected one of {names}." if known_names else "It takes no options."
        return f"{path}.{self.key}: unknown key{hint} {wanted_words}"


@dataclass(frozen=True)
class WrongOption:
    """An option with a value that it cannot have. expected: what it should be, in words; got: the
    value, and why not, or what to do."""

    where: str
    key: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.where}: Expected `{self.key}` to be {self.expected} but got {self.got}."

    def at(self, path: str, also: tuple[str, ...] = ()) -> str:
        """Return the message of a configuration whose section is `path`."""
        del also
        return f"{path}.{self.key}: expected {self.expected} but got {self.got}."


@dataclass(frozen=True)
class OptionConflict:
    """Options that do not go together, or what takes them does not. text: a whole message."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"

    def at(self, path: str, also: tuple[str, ...] = ()) -> str:
        """Return the message of a configuration whose section is `path`."""
        del also
        return f"{path}: {self.text}"


_LARGEST = 2**53
"""Of whole numbers: beyond it, sizes overflow in libraries, and JSON is no longer exact."""

OptionProblem = UnknownOption | WrongOption | OptionConflict


class OptionsError(ConfigError):
    """Options that cannot be taken: `problems` says which and why, the message all of them."""

    def __init__(self, problems: Iterable[OptionProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def describe(name: str, target: Callable[..., Any], given_names: Iterable[str]) -> Description:
    """Return what `target` is and takes; the summary is the first paragraph of its docstring.

    given_names: the parameters that no user sets as an option.
    """
    hints = get_type_hints(target, include_extras=True)
    infos = []
    for parameter in _parameters(target, given_names):
        hint = hints[parameter.name]
        helps = [
            item.description
            for item in get_args(hint)
            if isinstance(item, FieldInfo) and item.description
        ]
        infos.append(
            OptionInfo(
                parameter.name, type_name(hint), parameter.default, helps[0] if helps else ""
            )
        )
    summary = (inspect.getdoc(target) or "").partition("\n\n")[0].replace("\n", " ")
    return Description(name, summary, tuple(infos))


def check_options(
    where: str,
    target: Callable[..., Any],
    options: Mapping[str, Any],
    given_names: Iterable[str],
    *also: Callable[..., Any],
) -> dict[str, Any]:
    """Return `options` with every value of the type and in the range that `target` states.

    where: opens each line of the error, e.g. "data set 'digits'". given_names: as in
    `describe`. also: further callables whose options are known here.

    Raises:
        ConfigError: unknown options, wrong types and values out of range, all in one message.
    """
    hidden = set(given_names)
    takers = {name: one for one in (target, *also) for name in _hints(one) if name not in hidden}
    valid_options: dict[str, Any] = {}
    problems: list[OptionProblem] = []
    for name, value in options.items():
        if name not in takers:
            problems.append(UnknownOption(where, name, tuple(takers)))
            continue
        hint = _hints(takers[name])[name]
        if isinstance(value, int) and abs(value) > _LARGEST:
            problems.append(WrongOption(where, name, "a number of at most 2^53", repr(value)))
            continue
        try:
            if isinstance(value, bool) and bool not in type_members(hint):  # it would become 0 or 1
                raise TypeError
            valid_options[name] = _adapter(takers[name], name).validate_python(value)
            if not _is_finite(valid_options[name]):
                problems.append(WrongOption(where, name, "finite", repr(value)))
        except (TypeError, ValidationError):  # its own words are those of programmers
            problems.append(WrongOption(where, name, type_words(hint), repr(value)))
    if problems:
        raise OptionsError(problems)
    return valid_options


def whole_number(value: Any, name: str) -> int:
    """Return a whole number of at least 1, of Python, NumPy or torch, as one of Python.

    name: of the argument, for the message.

    Raises:
        ConfigError: any other number, a truth value, or no number.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(
            f"Expected `{name}` to be a whole number of at least 1 but got {value!r}."
        )
    return number


def lookup(kind: str, table: Mapping[str, Any], name: str, more: str = "") -> Any:
    """Return `table[name]`, or raise a ConfigError that lists the names there are and `more`."""
    if name in table:
        return table[name]
    end = did_you_mean(name, table) or "."
    raise ConfigError(f"Expected a {kind} among {', '.join(table)}{more} but got {name!r}{end}")


def did_you_mean(name: str, known_names: Iterable[str]) -> str:
    """Return a did-you-mean clause, or nothing."""
    close = difflib.get_close_matches(str(name), list(known_names), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _is_finite(value: Any) -> bool:
    """Tell whether there is no infinity and no NaN among the numbers of an option."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(_is_finite(entry) for entry in value)
    return not isinstance(value, float) or math.isfinite(value)


@lru_cache(maxsize=256)
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return parameter -> its type, of all parameters."""
    hints = get_type_hints(target, include_extras=True)
    return {parameter.name: hints[parameter.name] for parameter in _parameters(target, ())}


@lru_cache(maxsize=1024)
def _adapter(target: Callable[..., Any], name: str) -> TypeAdapter[Any]:
    """Return what checks the values of a parameter; to make it takes a millisecond."""
    return TypeAdapter(_hints(target)[name])


def _parameters(target: Callable[..., Any], given_names: Iterable[str]) -> list[inspect.Parameter]:
    given_names = set(given_names)
    return [p for p in inspect.signature(target).parameters.values() if p.name not in given_names]
