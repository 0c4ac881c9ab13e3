"""The rows of CSV files that people fill in, in whatever dialect a spreadsheet saved them.

Sheets of answers (`sheet`), and the sheets and tables of labels of a labelling project, are split
into rows here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from upslope.errors import DataError

_DELIMITERS = ",;\t|"


def split_rows(
    path: Path, text: str, columns: Sequence[str], remedy: str = ""
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the names of the columns, and (number, cells) of each row that is not empty.

    Spreadsheets number rows from 1, the header's. They leave out empty cells at the end of a row,
    which may so have fewer cells than there are columns.

    path: of the file, for messages. text: of the file. columns: names that must be there, in upper
    or lower case. remedy: the end of each message.

    Raises:
        DataError: another header; a row of more cells than columns; quotes that do not close.
    """
    number = 1
    if text.lower().startswith("sep="):  # Excel's own line about the delimiter
        text, number = "".join(text.splitlines(keepends=True)[1:]), 2
    delimiter = next((d for d in _DELIMITERS if {*columns} <= {*_header(text, d)}), None)
    if delimiter is None:
        first = next(iter(text.splitlines()), "").strip()
        raise DataError(
            f"Expected the columns {', '.join(columns[:-1])} and {columns[-1]} in the first line "
            f"of {path} but got {first!r}. Name them so. {remedy}".rstrip()
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        names = [name.strip() for name in next(reader)]
        for cells in reader:
            number += 1
            if any(cell.strip() for cell in cells[len(names) :]):
                raise DataError(
                    f"Expected at most {len(names)} cells in each row of {path}, as in the first "
                    f"line, but row {number} has {len(cells)}. A cell that holds {delimiter!r} "
                    f"needs double quotes around it. {remedy}".rstrip()
                )
            if any(cell.strip() for cell in cells):
                rows.append((number, cells[: len(names)]))
    except csv.Error as error:
        raise DataError(
            f"Expected a CSV file in {path} but reading it failed after row {number}: {error}. A "
            f"double quote inside a quoted cell is written twice. {remedy}".rstrip()
        ) from error
    return names, rows


def by_lower_names(
    path: Path, text: str, columns: Sequence[str], remedy: str = ""
) -> list[tuple[int, dict[str, str]]]:
    """Return (number, cells by the names of their columns in lower case) of each row.

    A cell that a row does not have is absent. Arguments are those of `split_rows`.

    Raises:
        DataError: as `split_rows`, and one of `columns` several times.
    """
    names, rows = split_rows(path, text, columns, remedy)
    names = [name.lower() for name in names]
    for name in columns:
        if names.count(name) > 1:
            raise DataError(
                f"Expected one column {name} in {path} but got {names.count(name)}. Remove or "
                f"rename the others. {remedy}".rstrip()
            )
    return [(number, dict(zip(names, cells, strict=False))) for number, cells in rows]


def _header(text: str, delimiter: str) -> list[str]:
    try:
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:  # a cell longer than any header has
        return []
    return [cell.strip().lower() for cell in cells]
