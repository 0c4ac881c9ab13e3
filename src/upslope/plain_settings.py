"""Settings that objects of the user's hold, as a ledger records them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch

from upslope.files import json_digest

_NOT_PLAIN = object()
_DEEPEST = 4
"""Containers within each other that are looked into: some hold themselves."""
_LONGEST = 64
"""Entries of a container; of more, as a vocabulary has, the digest is recorded."""


def settings_of(value: object) -> dict[str, Any]:
    """Return the settings of an object that no configuration describes; of a function, none.

    Those of a `functools.partial` are its arguments, those of others their public attributes.

    value: a strategy, a task or a training loop.
    """
    if isinstance(value, partial):
        positional = {str(place): argument for place, argument in enumerate(value.args)}
        return plain_entries({**positional, **value.keywords})
    if is_dataclass(value) or isinstance(value, FunctionType | BuiltinFunctionType):
        return {}
    attributes = getattr(value, "__dict__", {})
    return plain_entries({k: v for k, v in attributes.items() if not k.startswith("_")})


def plain_entries(entries: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    """Return the entries of a mapping that are settings, which mean the same everywhere, as JSON.

    Numbers, words, names of functions, and containers of these. Words that may be a path or a
    device are left out, since a run may go on elsewhere.

    entries: by name. depth: of containers around it.
    """
    plain_values = {str(key): _plain(value, depth) for key, value in entries.items()}
    return {key: value for key, value in plain_values.items() if value is not _NOT_PLAIN}


def _plain(value: object, depth: int) -> Any:
    """A setting as JSON has it, `_NOT_PLAIN` where it is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _NOT_PLAIN if _depends_on_place(value) else value
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return value.__name__
    contents = _NOT_PLAIN if depth == _DEEPEST else _plain_container(value, depth + 1)
    is_long = isinstance(contents, list | dict) and len(contents) > _LONGEST
    return json_digest(contents) if is_long else contents


def _plain_container(value: object, depth: int) -> Any:
    if isinstance(value, partial):
        return _plain([value.func, list(value.args), value.keywords], depth)
    if is_dataclass(value) and not isinstance(value, type):
        return plain_entries({f.name: getattr(value, f.name, None) for f in fields(value)}, depth)
    if isinstance(value, Mapping):
        return plain_entries(value, depth)
    if isinstance(value, list | tuple):
        entries = [_plain(entry, depth) for entry in value]
        return _NOT_PLAIN if any(entry is _NOT_PLAIN for entry in entries) else entries
    return _NOT_PLAIN


def _depends_on_place(text: str) -> bool:
    """Whether a word may be a path or the name of a device."""
    if "/" in text or "\\" in text:
        return True
    try:
        torch.device(text)
    except RuntimeError:
        return False
    return True
