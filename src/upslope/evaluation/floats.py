"""Arguments as numbers, or one error that says which of them are none.

The statistics of this folder call them on what users give.
"""

from __future__ import annotations

import math
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


def as_number(value: Any, name: str) -> float:
    """Return one finite number as a float.

    name: of the argument, for messages.

    Raises:
        DataError: text, several numbers, NaN or infinity.
    """
    try:
        number = math.nan if isinstance(value, str | bytes) or np.ndim(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"Expected `{name}` to be one finite number but got {str(value)[:100]!r}.")
    return number


def as_share(value: Any, name: str) -> float:
    """Return a number between 0 and 1, without the two.

    name: of the argument, for messages.

    Raises:
        DataError: any other number, or none.
    """
    share = as_number(value, name)
    if not 0.0 < share < 1.0:
        raise DataError(f"Expected `{name}` to be between 0 and 1 but got {value}.")
    return share


def as_count(value: Any, name: str, least: int) -> int:
    """Return a whole number, such as 2, or 2.0 as sums of floats give it.

    name: of the argument, for messages. least: the smallest that is allowed.

    Raises:
        DataError: a smaller number, a fraction, or none.
    """
    number = as_number(value, name)
    if number != int(number) or number < least:
        raise DataError(
            f"Expected `{name}` to be a whole number of at least {least} but got {value}."
        )
    return int(number)


def check_answers(correct: NDArray[np.float64], name: str) -> None:
    """Refuse what is not whether models are right, or how often.

    correct: of any shape. name: of the argument, for messages.

    Raises:
        DataError: NaN, or a number outside of 0 to 1.
    """
    if not bool(((correct >= 0) & (correct <= 1)).all()):
        raise DataError(f"Expected `{name}` to hold true and false, or 1 and 0, but got others.")


def is_increasing(numbers: NDArray[np.float64]) -> bool:
    """Whether finite numbers, (n,), rise strictly."""
    return bool(np.isfinite(numbers).all() and (np.diff(numbers) > 0).all())
