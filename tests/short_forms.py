"""Short forms of families of tests: a part always runs, and all of it in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mark_rest_long(values: Iterable[Any], step: int) -> list[Any]:
    """Return the values as parameters of a test: each `step`-th as it is, the others as long.

    Tuples are the values of several arguments.
    """
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=pytest.mark.long if place % step else (),
        )
        for place, value in enumerate(values)
    ]
