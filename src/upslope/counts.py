"""Counts in sentences: "1 image", "2 images", "1,024 classes"; the first words or lines of many."""

from __future__ import annotations

from collections.abc import Sequence


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun, in the singular or the plural.

    number: with commas between thousands in the result. noun: in the singular, perhaps with words
    before it. plural: of the noun; by the usual rules of spelling, if not given.
    """
    return f"{number:,} {noun if number == 1 else plural or _plural(noun)}"


def first_lines(lines: Sequence[str], most: int) -> str:
    """Return the first lines, and behind them how many more there are.

    lines: of a message. most: how many of them are shown.
    """
    more = [f"... and {len(lines) - most} more."] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])


def list_some(words: Sequence[str], most: int) -> str:
    """Return the first words as a list in a sentence, and behind them how many more there are.

    words: names, for instance. most: how many of them are shown.
    """
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return f"{', '.join(words[:most])}{more}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and not noun.endswith(("ay", "ey", "oy", "uy")):
        return f"{noun[:-1]}ies"
    return f"{noun}s"
