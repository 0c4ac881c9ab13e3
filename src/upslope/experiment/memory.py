"""Out of memory, said as such and with what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from upslope.errors import RunError, first_line

_SIGNS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
"""What torch says, in a RuntimeError, where the memory of the CPU or of a device is short."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a want of memory into a RunError.

    Raises:
        RunError: the memory of the machine or of the device is short.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (memory_error := as_memory_error(error)) is None:
            raise
        raise memory_error from error


def as_memory_error(error: Exception) -> RunError | None:
    """Return what to tell of an error that is a want of memory, None for any other."""
    text = str(error)
    if not (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and any(sign in text.lower() for sign in _SIGNS))
    ):
        return None
    said = first_line(error)
    return RunError(
        f"Expected enough memory for this step but it ran out: {said}. "
        "Lower training.batch_size (in a new run), experiment.score_batch or the number of "
        "workers, take a smaller network, or a machine with more; the same command goes on: "
        "nothing recorded is lost."
    )
