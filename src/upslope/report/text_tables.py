"""Tables as Markdown and CSV text; reports and reproductions of the paper call it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

DASH = "–"
"""What stands in a cell that has no value."""


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1
) -> str:
    """Return a Markdown table, without a line break at its end.

    head: the column names. rows: as many cells in each as there are columns.
    text_columns: how many columns, from the left, are set flush left; the others are numbers and
        set flush right.
    """
    marks = [" ---"] * text_columns + [" ---:"] * (len(head) - text_columns)
    lines = [f"| {' | '.join(head)} |", f"|{' |'.join(marks)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV table, its lines ended by a line feed.

    head: the column names. rows: cells, written as `str` of them, quoted where they need it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return buffer.getvalue()
