"""The errors that Upslope raises on purpose.

Every message names the value that was found, what was expected, and what to do about it. The
command line prints the message alone, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import ClassVar


class UpslopeError(Exception):
    """Base of every error that Upslope raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(UpslopeError):
    """A configuration that cannot work: unknown keys, wrong types, values out of range."""

    exit_code = 2


class DataError(UpslopeError):
    """Data that cannot be used: a corrupt file, a wrong shape, a label out of range."""

    exit_code = 3


class ModelError(UpslopeError):
    """A model or a checkpoint that does not fit what is asked of it."""

    exit_code = 4


class SelectionError(UpslopeError):
    """A selection that cannot be made: empty pool, budget too large, scores not finite."""

    exit_code = 5


class RunError(UpslopeError):
    """A run directory that cannot be used: locked, of another configuration, damaged, full."""

    exit_code = 6


class NothingRecordedError(RunError):
    """A ledger that is empty: nothing of it is lost, as its process ended before it recorded."""


class GradientNormError(UpslopeError, ValueError):
    """A model, an input or a loss for which one gradient norm per sample is not defined."""

    exit_code = 4


class GradientNormWarning(UserWarning):
    """Per-sample gradients that are exact, and slow or all zero, for a reason that is named."""


class InfluenceError(UpslopeError, ValueError):
    """A curvature, a solve or an influence that is not defined for what was given."""

    exit_code = 4


def warn_user(message: str, category: type[Warning] = GradientNormWarning) -> None:
    """Warn at the line outside this package that led here, where its author can act on it."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()
    while frame is not None and _package_of(frame) == package:
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, category, stacklevel=level)


def _package_of(frame: FrameType) -> str:
    """Return the package whose code a frame runs."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without its full stop; its type if it has none.

    It is quoted within sentences, which end with a full stop of their own.
    """
    return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
