"""Recognise text that stands for a date, a time, or a number with a sign or a unit.

Readers refuse such columns instead of taking each value for a category. Cells come with counts, so
that a column of few categories costs a few comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?"
    r"|oct(ober)?|nov(ember)?|dec(ember)?)"
)
_TIME = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[ap]m)?"
_DATE = re.compile(
    rf"(\d{{4}}[-./]\d{{1,2}}([-./]\d{{1,2}})?|\d{{1,2}}[-./]\d{{1,2}}[-./]\d{{2,4}}"
    rf"|\d{{1,2}}[-. ]+{_MONTH}[-., ]+\d{{2,4}}|{_MONTH}[-., ]+(\d{{1,2}}[-., ]+)?\d{{2,4}})"
    rf"([T ,]+{_TIME}.*)?|{_TIME}",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"[^\w\s]*\s*\d[\d.,'’_\s]*([^\d]*)")  # \s includes no-break spaces


def is_date(text: str) -> bool:
    """Return whether a text is a date, a month of a year, a time, or a date with a time."""
    return _DATE.fullmatch(text.strip()) is not None


def first_date(counts: Mapping[str, int]) -> str | None:
    """Return the first date or time where at least half of the cells are such, else None."""
    dates = {cell: n for cell, n in counts.items() if is_date(cell)}
    return next(iter(dates)) if 2 * sum(dates.values()) >= sum(counts.values()) else None


def first_amount(counts: Mapping[str, int]) -> str | None:
    """Return the first number with a sign or a unit where at least half of the cells have the same.

    "5 kg" and "7 kg" are such, "1st" and "2nd" or "18-25" and "26-35" are not. None otherwise.
    """
    cells: dict[str, list[str]] = {}
    for cell in counts:
        if match := _AMOUNT.fullmatch(cell.strip()):
            cells.setdefault(match[1].strip(), []).append(cell)
    for same in cells.values():
        if len(same) > 1 and 2 * sum(counts[cell] for cell in same) >= sum(counts.values()):
            return same[0]
    return None
