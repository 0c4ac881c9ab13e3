"""Counts in sentences: "1 image", "2 images", "1,024 classes"."""

from __future__ import annotations


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun, in the singular or the plural.

    number: with commas between thousands in the result. noun: in the singular, perhaps with words
    before it. plural: of the noun; by the usual rules of spelling, if not given.
    """
    return f"{number:,} {noun if number == 1 else plural or _plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and not noun.endswith(("ay", "ey", "oy", "uy")):
        return f"{noun[:-1]}ies"
    return f"{noun}s"
