"""Messages of readers for callers in Python, who pass arguments where configurations set options.

The readers of files name their options as a configuration does, `data.size`. Where the same checks
run for `Splits.from_table` and its like, `size` is an argument, and the messages call it so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from upslope.errors import ConfigError, DataError

_OPTION = re.compile(r"(?:-s )?\bdata\.(\w+)")


def as_arguments(text: str) -> str:
    """Return a sentence in which options of a configuration are called as arguments."""
    return _OPTION.sub(r"\1", text)


@contextmanager
def options_as_arguments() -> Iterator[None]:
    """Call options as arguments in the errors about configurations and data raised within."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(as_arguments(str(error))) from error
    except DataError as error:
        raise DataError(as_arguments(str(error))) from error
