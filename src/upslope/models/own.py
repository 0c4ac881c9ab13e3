"""Networks from a function of the user's own, `package.module:function`.

The function is imported from wherever Python finds it, the current folder included, and called with
`num_classes`, `input_shape` and the options of the configuration.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from upslope.errors import ConfigError, UpslopeError
from upslope.memory import raise_memory_error
from upslope.models.inputs import ImageForm, stated_form
from upslope.registry import (
    OptionConflict,
    OptionProblem,
    OptionsError,
    UnknownOption,
    WrongOption,
    did_you_mean,
)
from upslope.type_words import type_members, type_words

DATA_ARGUMENTS = ("num_classes", "input_shape")
"""What a data set decides; no option may have these names."""
_PLAIN = {int, float, str, bool, NoneType}


def check_own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Import the function and check the names of its options; call nothing.

    Raises:
        ConfigError: a function that cannot be imported, or that does not take what it would be
            given; all wrong options in one message.
    """
    factory = import_function(name)
    where = f"model {name!r}"
    problems = [
        *given_problems(name, options),
        *_wrong_parameters(where, factory, options),
        *_wrong_types(where, factory, options),
    ]
    if problems:
        raise OptionsError(problems)
    return dict(options)


def _wrong_parameters(
    where: str, factory: Callable[..., Any], options: Mapping[str, Any]
) -> list[OptionProblem]:
    """Return the problems of parameters: options without one, and parameters without a value."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # functions written in C may not tell
        return []
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    problems: list[OptionProblem] = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        problems += _wrong_names(where, [p.name for p in by_name], options)
    wanted_words = "an option with a value, since the function has no default for it,"
    problems += [
        WrongOption(where, p.name, wanted_words, "none")
        for p in by_name
        if p.default is p.empty and p.name not in {*DATA_ARGUMENTS, *options}
    ]
    return problems


def _wrong_names(
    where: str, names: Sequence[str], options: Mapping[str, Any]
) -> list[OptionProblem]:
    """Return the problems of a function that takes parameters of these names alone."""
    own_names = tuple(n for n in names if n not in DATA_ARGUMENTS)
    problems: list[OptionProblem] = [
        UnknownOption(where, key, own_names)
        for key in options
        if key not in names and key not in DATA_ARGUMENTS
    ]
    if missing := [n for n in DATA_ARGUMENTS if n not in names]:
        text = (
            "Expected a function that takes num_classes= and input_shape= but its parameters "
            f"are ({', '.join(names)}). Add {' and '.join(missing)}."
        )
        problems.append(OptionConflict(where, text))
    return problems


def _wrong_types(
    where: str, factory: Callable[..., Any], options: Mapping[str, Any]
) -> list[WrongOption]:
    """Return the problem of each option whose plain annotation (int, float, str, bool) is another
    type.
    """
    try:
        made_by = factory.__init__ if inspect.isclass(factory) else factory
        hints = get_type_hints(made_by, include_extras=True)
    except Exception:  # annotations of somebody else's may name what is not there
        return []
    problems = []
    for key, value in options.items():
        if key not in hints or not type_members(hints[key]) <= _PLAIN:
            continue
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError:
            problems.append(WrongOption(where, key, type_words(hints[key]), repr(value)))
    return problems


def given_problems(name: str, options: Mapping[str, Any]) -> list[WrongOption]:
    """Return the problem of each option that is not the user's to set."""
    wanted_words = "what the data set gives, and no option,"
    return [
        WrongOption(f"model {name!r}", key, wanted_words, f"{options[key]!r}. Leave it out")
        for key in DATA_ARGUMENTS
        if key in options
    ]


def image_form(name: str) -> ImageForm | None:
    """Return what the attributes `mean`, `std` and `size` of the function say; None without them.

    Raises:
        ConfigError: a function that cannot be imported, or attributes that are no such numbers.
    """
    function = import_function(name)
    values = (getattr(function, key, None) for key in ("mean", "std", "size"))
    return stated_form(f"the function {name!r}", *values)


def build_own(
    name: str, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, Any]
) -> nn.Module:
    """Call the function.

    Raises:
        ConfigError: wrong options, an exception in the function, something else than a network.
    """
    valid_options = check_own_options(name, options)
    factory = import_function(name)
    try:
        with importable_current_folder():
            model = factory(num_classes=num_classes, input_shape=input_shape, **valid_options)
    except UpslopeError:
        raise
    except Exception as error:  # whatever a function of somebody else's may raise
        raise_memory_error(error)
        words = "".join(f", {key}={value!r}" for key, value in options.items())
        raise ConfigError(
            f"Expected the model factory {name!r} to return a network for num_classes="
            f"{num_classes}, input_shape={input_shape}{words} but it raised "
            f"{type(error).__name__}: {error}{_place(error.__traceback__)}."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"Expected the model factory {name!r} to return a torch.nn.Module but got "
            f"{type(model).__name__}."
        )
    return model


def import_function(name: str) -> Callable[..., Any]:
    """Import what `package.module:function` names.

    Raises:
        ConfigError: no such module or function, or a module that raises while it is imported.
    """
    module_name, _, attribute = name.partition(":")
    try:
        # What the first import draws must not move the weights of the network that is then built.
        with importable_current_folder(), torch.random.fork_rng(devices=[]):
            module = importlib.import_module(module_name)
    except Exception as error:  # a module of somebody else's may raise anything, SyntaxError too
        raise_memory_error(error)
        message = (
            str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        )
        raise ConfigError(
            f"Expected the model {name!r} to name an importable module but importing "
            f"{module_name!r} failed: {message}{_place(error.__traceback__)}. Install it, run the "
            f"command in the folder that holds it (this is {Path.cwd()}), or put that folder on "
            "PYTHONPATH."
        ) from error
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if isinstance(function, nn.Module):
        raise ConfigError(
            f"Expected {attribute!r} in {module_name!r} to be a function that returns a new "
            f"torch.nn.Module at each call but got a network, of {type(function).__name__}. Write "
            "a function, def make(num_classes, input_shape): return ..., as each training begins "
            "with a network of its own."
        )
    if not callable(function):
        got = "nothing of that name" if function is None else type(function).__name__
        near = did_you_mean(attribute, (n for n, v in vars(module).items() if callable(v)))
        raise ConfigError(
            f"Expected {attribute!r} in {module_name!r} to be a function that returns a "
            f"torch.nn.Module but got {got}{near or '.'} Define it there, or correct the name."
        )
    return function


@contextmanager
def importable_current_folder() -> Iterator[None]:
    """Let Python find modules in the current folder, last of all places, for as long as this lasts.

    Last, and not longer, so that a file there never stands in for a library that is asked for
    elsewhere.
    """
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


def _place(traceback: TracebackType | None) -> str:
    """Return ` (nets.py, line 7)`: the last line outside Upslope, Python and its packages."""
    place, package_folders = (
        "",
        (str(Path(__file__).parents[1]), sys.prefix, sys.base_prefix, "<frozen"),
    )
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(package_folders):
            place = f" ({Path(file).name}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place
