"""Labels from the answers of annotators: classes by name or number, label sets, numbers.

A class is given by its name, or by its position where no class is named by a number that is not
its position: of the classes "1", "2", "3", the number 1 may mean the first or the second, and is
refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from upslope.counts import list_some
from upslope.errors import DataError
from upslope.registry import did_you_mean

NO_LABEL = "none"
_MOST_NAMES = 10
_LARGEST = float(np.finfo(np.float32).max)
"""The largest number that is finite in single precision, in which networks learn."""


class MaskNeededError(DataError):
    """The labels of a task are masks: annotators draw them, and no answer holds one."""


def class_label(answer: Any, classes: Sequence[str]) -> int:
    """Return the position of the class that an answer names.

    answer: a name as text, or a position as a whole number.

    Raises:
        DataError: no class of that name, no such position, a number that may mean two classes.
    """
    if isinstance(answer, str):
        if answer in classes:
            return _position(answer, classes)
        close = did_you_mean(answer, classes) or "."
        raise DataError(f"Expected one of the classes {_names(classes)} but got {answer!r}{close}")
    try:
        if isinstance(answer, bool):
            raise TypeError
        number = operator.index(answer)
    except TypeError:
        raise DataError(
            f"Expected the name of a class, {_names(classes)}, or its number but got {answer!r}."
        ) from None
    other = [(i, name) for i, name in enumerate(classes) if _number(name) not in (None, i)]
    if other:
        position, name = other[0]
        raise DataError(
            f"Expected the name of a class as text but got the number {number}, which may mean a "
            f"name or a position: class {name!r} is at position {position}. Give one of "
            f"{_names(classes)}."
        )
    if not 0 <= number < len(classes):
        raise DataError(
            f"Expected a class, {_names(classes)}, or its number, between 0 and "
            f"{len(classes) - 1}, but got {number}."
        )
    return number


def label_set(answer: Any, classes: Sequence[str]) -> list[int]:
    """Return 1 for each label that an answer holds and 0 for each other one.

    answer: the names of the labels that are present, or 0 and 1 for every label in order.

    Raises:
        DataError: a name that is no label's; numbers that are not one of 0 and 1 for each.
    """
    values = _sequence(answer)
    if values is None:
        _refuse(answer, f"a list of the labels present, among {_names(classes)}")
    if all(isinstance(value, str) for value in values):
        present = {class_label(value, classes) for value in values}
        return [int(i in present) for i in range(len(classes))]
    if len(values) != len(classes) or any(value not in (0, 1) for value in values):
        _refuse(answer, f"names of labels, or 0 or 1 for each of {_names(classes)}")
    return [int(value) for value in values]


def numbers(answer: Any, names: Sequence[str]) -> list[float]:
    """Return the numbers of an answer, one for each name.

    answer: a number where there is one name, else a sequence of them in the order of the names.

    Raises:
        DataError: another count of numbers; one that is not finite in single precision, or none.
    """
    values = _sequence(answer)
    values = [answer] if values is None else values
    # Scalars of NumPy and torch are numbers too.
    values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    good = len(values) == len(names) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _LARGEST
        for v in values
    )
    if not good:
        what = "a finite number" if len(names) == 1 else f"{len(names)} finite numbers"
        _refuse(answer, f"{what}, {', '.join(names)},")
    return [float(value) for value in values]


def class_answer(text: str, classes: Sequence[str]) -> str | int:
    """Return the answer that a cell of text is: a name, or a position where it names no class."""
    return int(text) if text not in classes and text.isdecimal() else text


def label_set_answer(text: str, classes: Sequence[str]) -> list[str]:
    """Return the names in a cell, with semicolons between; `none` is no label at all."""
    if text == NO_LABEL and text not in classes:
        return []
    return [name.strip() for name in text.split(";")]


def numbers_answer(text: str, names: Sequence[str]) -> list[float]:
    """Return the numbers in a cell, with semicolons between.

    Raises:
        DataError: text that is no number.
    """
    try:
        return [float(part) for part in text.split(";")]
    except ValueError:
        _refuse(text, f"numbers with a decimal point, {'; '.join(names)},")


def _position(name: str, classes: Sequence[str]) -> int:
    if classes.count(name) > 1:
        raise DataError(f"Expected {name!r} to name one class but {classes.count(name)} have it.")
    return classes.index(name)


def _number(name: str) -> int | None:
    """Return the whole number that a name is, as "1", "01" or "1.0"; None for any other name."""
    try:
        value = float(name)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def _sequence(answer: Any) -> list[Any] | None:
    """Return the items of an array, a tensor or a collection; None where an answer is none of
    these.
    """
    plain = answer.tolist() if hasattr(answer, "tolist") else answer
    return list(plain) if isinstance(plain, list | tuple | set | frozenset) else None


def _names(classes: Sequence[str]) -> str:
    return list_some([*map(repr, classes)], _MOST_NAMES)


def _refuse(answer: Any, what_is_wanted: str) -> NoReturn:
    raise DataError(f"Expected {what_is_wanted} but got {answer!r}.")
