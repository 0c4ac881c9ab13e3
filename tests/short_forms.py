"""Short forms of families of tests: a part always runs, and all of it in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mark_rest_long(values: Iterable[Any], step: int) -> list[Any]:
    """Return the values as parameters of a test: each `step`-th as it is, the others as long."""
    return [
        value if place % step == 0 else pytest.param(value, marks=pytest.mark.long)
        for place, value in enumerate(values)
    ]
