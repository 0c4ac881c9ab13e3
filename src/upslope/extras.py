"""Packages that only some uses need, and the error where one is not installed."""

from __future__ import annotations

import importlib
from typing import Any

from upslope.errors import ConfigError


def import_package(module: str, purpose: str, extra: str | None = None) -> Any:
    """Return a module of a package that need not be installed.

    module: its name, which begins with that of the package. purpose, extra: as of
    `missing_package`.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_package(module.partition(".")[0], purpose, extra) from error


def missing_package(
    package: str, purpose: str, extra: str | None = None, otherwise: str = ""
) -> ConfigError:
    """Return the error that names a package which is not installed, and the command that does it.

    package: its name on PyPI, or those of several with `and` between. purpose: what it is needed
    for, in words that follow the name. extra: the extra of Upslope that brings it; without one, it
    is installed by its own name. otherwise: what to do instead of installing it, in words.
    """
    command = f"pip install '.[{extra}]' in the clone" if extra else f"pip install {package}"
    instead = f", or {otherwise}" if otherwise else ""
    several = " and " in package
    noun, absent = ("packages", "they are") if several else ("package", "it is")
    return ConfigError(
        f"Expected the {noun} {package} {purpose} but {absent} not installed: {command}{instead}."
    )
