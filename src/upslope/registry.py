"""The explicit tables behind `datasets`, `models` and `tasks`: a name, a callable, its options.

A callable's keyword parameters are its options. Types, ranges and help texts are written once,
in the signature, as `Annotated[float, Field(ge=0, lt=1, description="...")]`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from upslope.errors import ConfigError


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
        expected = ", ".join(f"`{name}`" for name in self.known) or "none"
        hint = did_you_mean(self.key, self.known) or "."
        return f"{self.where}: Expected options among {expected} but got `{self.key}`{hint}"

    def at(self, path: str, also: tuple[str, ...] = ()) -> str:
        """Return the message of a configuration whose section is `path`; also: its other keys."""
        known = (*also, *self.known)
        hint = did_you_mean(self.key, known) or "."
        names = ", ".join(f"`{name}`" for name in known)
        expected = f"Expected one of {names}." if known else "It takes no options."
        return f"{path}.{self.key}: unknown key{hint} {expected}"


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


OptionProblem = UnknownOption | WrongOption | OptionConflict


class OptionsError(ConfigError):
    """Options that cannot be taken: `problems` says which and why, the message all of them."""

    def __init__(self, problems: Iterable[OptionProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def describe(name: str, target: Callable[..., Any], given: Iterable[str]) -> Description:
    """What `target` is and takes. `given` are the parameters that no user sets as an option.

    The summary is the first line of its docstring.
    """
    hints = get_type_hints(target, include_extras=True)
    infos = []
    for parameter in _parameters(target, given):
        hint = hints[parameter.name]
        helps = [
            item.description
            for item in get_args(hint)
            if isinstance(item, FieldInfo) and item.description
        ]
        infos.append(
            OptionInfo(
                parameter.name, _type_name(hint), parameter.default, helps[0] if helps else ""
            )
        )
    summary = (inspect.getdoc(target) or "").partition("\n\n")[0].replace("\n", " ")
    return Description(name, summary, tuple(infos))


def check_options(
    where: str,
    target: Callable[..., Any],
    options: Mapping[str, Any],
    given: Iterable[str],
    *also: Callable[..., Any],
) -> dict[str, Any]:
    """`options` with every value of the type and in the range that `target` states.

    where: opens each line of the error, e.g. "data set 'digits'". given: as in `describe`.
    also: further callables whose options are known here.

    Raises:
        ConfigError: unknown options, wrong types and values out of range, all in one message.
    """
    hints: dict[str, Any] = {}
    for one in (target, *also):
        stated = get_type_hints(one, include_extras=True)
        hints |= {p.name: stated[p.name] for p in _parameters(one, given)}
    checked: dict[str, Any] = {}
    problems: list[OptionProblem] = []
    for name, value in options.items():
        if name not in hints:
            problems.append(UnknownOption(where, name, tuple(hints)))
            continue
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            got = f"{value!r} ({reason})"
            problems.append(WrongOption(where, name, _type_words(hints[name]), got))
    if problems:
        raise OptionsError(problems)
    return checked


def lookup(kind: str, table: Mapping[str, Any], name: str, more: str = "") -> Any:
    """`table[name]`, or a ConfigError that lists the names there are and `more`."""
    if name in table:
        return table[name]
    end = did_you_mean(name, table) or "."
    raise ConfigError(f"Expected a {kind} among {', '.join(table)}{more} but got {name!r}{end}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A did-you-mean clause, or nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _parameters(target: Callable[..., Any], given: Iterable[str]) -> list[inspect.Parameter]:
    given = set(given)
    return [p for p in inspect.signature(target).parameters.values() if p.name not in given]


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if isinstance(hint, type) and not get_args(hint):
        return "None" if hint is NoneType else hint.__name__
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_type_name(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        values = [f'"{v}"' if isinstance(v, str) else str(v) for v in get_args(hint)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    return str(hint).replace("typing.", "")


_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}


def _type_words(hint: Any) -> str:
    """A type as messages call it: "an integer or nothing"."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if hint in _WORDS:
        return _WORDS[hint]
    if hint is NoneType:
        return "nothing"
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [part for part in parts if not (part is int and float in parts)]
        # Nothing comes last, whatever the order in the annotation.
        kinds.sort(key=lambda part: part is NoneType)
        return " or ".join(_type_words(part) for part in kinds)
    if origin in (list, tuple) or hint in (list, tuple):
        of = _PLURALS.get(parts[0]) if parts else None
        return f"a list of {of}" if of else "a list"
    if origin is dict or hint is dict:
        return "a mapping"
    return _type_name(hint)
