"""Tables as Markdown and CSV text; reports and reproductions of the paper call it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_TAG = re.compile("<(?=[A-Za-z/!?])")
"""What begins HTML, unlike the sign in p < 0.001."""

DASH = "–"
"""What stands in a cell that has no value."""


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1
) -> str:
    """Return a Markdown table, without a line break at its end; cells are brought to one line.

    head: the column names. rows: as many cells in each as there are columns.
    text_columns: how many columns, from the left, are set flush left; the others are numbers and
        set flush right.
    """
    marks = [" ---"] * text_columns + [" ---:"] * (len(head) - text_columns)

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(plain_markdown(c).split()) for c in cells)} |"

    return "\n".join([line(head), f"|{' |'.join(marks)} |", *map(line, rows)])


def plain_markdown(text: str) -> str:
    """Return text in which nothing ends a table's cell or begins HTML; links stay as they are."""
    return _TAG.sub("&lt;", text).replace("|", r"\|")
