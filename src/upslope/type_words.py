"""Types of options as messages and tables call them, with their bounds: "an integer of at least 1".

They are read from annotations such as `Annotated[int | None, Field(ge=1)]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def type_words(hint: Any) -> str:
    """Return a type with its bounds as messages call it: "an integer of at least 1, or nothing".

    The `title` of its annotation is taken for it where there is one.
    """
    hint, bounds = _split_bounds(hint)
    if "title" in bounds:
        return str(bounds["title"])
    if hint is NoneType:
        return "nothing"
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _alternatives(parts, bounds)
    if hint in _WORDS:
        return _WORDS[hint] + _range_words(bounds)
    if origin in (list, tuple) or hint in (list, tuple):
        return _list_words(tuple(part for part in parts if part is not Ellipsis), origin, bounds)
    if origin is dict or hint is dict:
        return "a mapping"
    return type_name(hint)


def type_members(hint: Any) -> set[Any]:
    """Return the types and the literals that a type is made of."""
    hint, _ = _split_bounds(hint)
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return {member for part in parts for member in type_members(part)}
    if get_origin(hint) is Literal:
        return {type(value) for value in parts}
    return {Any if hint is object else get_origin(hint) or hint}


def _split_bounds(hint: Any) -> tuple[Any, dict[str, Any]]:
    """Return a type without its annotations, and what those ask of a value."""
    if get_origin(hint) is not Annotated:
        return hint, {}
    hint, *annotations = get_args(hint)
    bounds: dict[str, Any] = {}
    for info in annotations:
        if getattr(info, "title", None):
            bounds["title"] = info.title
        for item in info.metadata if isinstance(info, FieldInfo) else (info,):
            names = (*_BOUNDS, "min_length")
            bounds |= {name: getattr(item, name) for name in names if hasattr(item, name)}
    return hint, bounds


def _range_words(bounds: Mapping[str, Any]) -> str:
    """Return the bounds of one value, as " of at least 1" or " from 0 to 1"."""
    if "ge" in bounds and "le" in bounds:
        return f" from {bounds['ge']} to {bounds['le']}"
    range_words = [f"{words} {bounds[name]}" for name, words in _BOUNDS.items() if name in bounds]
    return (" of " if "ge" in bounds else " ") + " and ".join(range_words) if range_words else ""


def _alternatives(parts: tuple[Any, ...], bounds: Mapping[str, Any]) -> str:
    """Return the types of a union; bounds of the union are those of its numbers and texts."""
    kinds = [part for part in parts if not (part is int and float in parts)]
    # Nothing comes last, whatever the order in the annotation.
    kinds.sort(key=lambda part: part is NoneType)
    alternative_words = [
        type_words(part) + (_range_words(bounds) if part in (int, float, str) else "")
        for part in kinds
    ]
    comma = "," if any(" and " in one or " of " in one for one in alternative_words[:-1]) else ""
    return f"{comma} or ".join(alternative_words)


def _list_words(parts: tuple[Any, ...], origin: Any, bounds: Mapping[str, Any]) -> str:
    """Return a list as messages call it, with how many it may hold and what each may be."""
    item, item_bounds = _split_bounds(parts[0]) if parts else (None, {})
    length = ""
    if origin is tuple and len(parts) > 1:
        length = f"{len(parts)} "
    elif "min_length" in bounds:
        length = f"at least {bounds['min_length']} "
    if item in _PLURALS:
        return f"a list of {length}{_PLURALS[item]}{_range_words(item_bounds)}"
    if get_origin(item) in (Union, UnionType):
        kinds = [_PLURALS[part] for part in get_args(item) if part in _PLURALS]
        return f"a list of {length}{' or '.join(kinds)}"
    return f"a list of {length}values" if length else "a list"


def type_name(hint: Any) -> str:
    """Return a type as Python writes it, without its annotations: "int | None"."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if isinstance(hint, type) and not get_args(hint):
        return "None" if hint is NoneType else hint.__name__
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(type_name(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        values = [f'"{v}"' if isinstance(v, str) else str(v) for v in get_args(hint)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if isinstance(hint, GenericAlias):
        parts = ("..." if part is Ellipsis else type_name(part) for part in get_args(hint))
        return f"{get_origin(hint).__name__}[{', '.join(parts)}]"
    return str(hint).replace("typing.", "")
