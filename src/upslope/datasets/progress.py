"""How a long reading says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


def silent(done: int, total: int) -> None:
    """Report nothing."""
