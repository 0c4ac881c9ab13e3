"""Figures as arrays of floats, or one error that says which of them are none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError


def as_floats(values: Any, name: str) -> NDArray[np.float64]:
    """Return numbers as an array of floats, of any shape; NaN and infinity as they are.

    name: of the argument, for messages.

    Raises:
        DataError: text and other objects, or rows of different lengths, as of seeds that have not
            the same budgets.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Expected `{name}` to be numbers, in rows of one length, but got {str(values)[:100]}: "
            f"{error}. Leave out the seeds, or the budgets, that not all have."
        ) from error
