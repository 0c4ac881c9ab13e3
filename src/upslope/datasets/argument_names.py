"""Messages of readers for callers who set options in another way than configurations do.

The readers of files name their options as a configuration does, `data.size`. Where the same checks
run for `Splits.from_table` and its like, `size` is an argument, and `upslope label` takes it as
`--size`: the messages call it so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from upslope.errors import ConfigError, DataError

_OPTION = re.compile(r"`data\.(\w+)`")
_WITH_VALUE = re.compile(r"(?:-s )?\bdata\.(\w+)=")
_LIST_OF_NAMES = re.compile(r"\bdata\.(\w+)=\[([\w, ]+)\]")
"""Options alone: a path or a column may be called data.csv, and is not quoted with backticks."""
_LEAVE_OUT = re.compile(r", or leave such \w+ out: `(-s )?experiment\.on_corrupt=skip`")
"""Advice that is for runs alone: what is opened otherwise leaves nothing out."""


def as_arguments(text: str, argument_names: Mapping[str, str] | None = None) -> str:
    """Return a sentence in which options of a configuration are called as arguments.

    text: the sentence. argument_names: option -> its argument, of those that are called otherwise.
    """
    names = argument_names or {}
    text = _OPTION.sub(lambda m: f"`{names.get(m[1], m[1])}`", _LEAVE_OUT.sub("", text))
    return _WITH_VALUE.sub(lambda m: f"{names.get(m[1], m[1])}=", text)


def as_command_options(text: str) -> str:
    """Return a sentence in which options of a configuration are called as those of a command."""
    text = _LEAVE_OUT.sub("", text)
    text = _LIST_OF_NAMES.sub(lambda m: f"{_option_name(m[1])} {m[2].replace(' ', '')}", text)
    return _OPTION.sub(lambda match: f"`{_option_name(match[1])}`", text)


@contextmanager
def options_as_arguments(argument_names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Call options as arguments in the errors about configurations and data raised within.

    argument_names: as for `as_arguments`.
    """
    with _renaming(partial(as_arguments, argument_names=argument_names)):
        yield


@contextmanager
def options_as_command_options() -> Iterator[None]:
    """Call options as a command's in the errors about configurations and data raised within."""
    with _renaming(as_command_options):
        yield


@contextmanager
def _renaming(rename: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(rename(str(error))) from error
    except DataError as error:
        raise DataError(rename(str(error))) from error


def _option_name(name: str) -> str:
    return "--" + name.replace("_", "-")
