"""Rows of CSV files that people saved; the sheet of answers and tables of labels are read by it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from upslope.errors import DataError


def read_csv_text(path: Path) -> str:
    """Return the text of a CSV file in UTF-8, without its byte order mark.

    Raises:
        DataError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected {path} to be a CSV file in UTF-8 but: {error}. Save it again as CSV UTF-8."
        ) from error


def split_rows(text: str, delimiter: str, path: Path, *, is_whole: bool = True) -> list[list[str]]:
    """Return the cells of each row, the header's first.

    is_whole: the text is all of the file, in which a quote that is open at the end would swallow
    rows.

    Raises:
        DataError: it is no CSV, with an open quote or a cell beyond the limit for instance.
    """
    try:
        lines = io.StringIO(text, newline="")
        return list(csv.reader(lines, delimiter=delimiter, strict=is_whole))
    except csv.Error as error:
        raise DataError(
            f"Expected {path} to be a CSV file but: {error}. Nothing was recorded."
        ) from error


def rows_below_header(rows: Sequence[Sequence[str]], path: Path) -> Iterator[Sequence[str]]:
    """Yield the rows below the header that are not empty.

    Raises:
        DataError: a row has another number of cells than the header; it names the row.
    """
    for number, cells in enumerate(rows[1:], 2):  # as spreadsheets number them
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(rows[0]):
            raise DataError(
                f"Expected {len(rows[0])} cells in row {number} of {path} but got {len(cells)}. "
                "Quote cells that hold the delimiter; nothing was recorded."
            )
        yield cells
