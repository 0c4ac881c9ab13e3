"""Read CSV and TSV files as text, cell by cell as written: no type is guessed, no cell changed.

What a column means (numbers, categories, classes, ids) is decided by whoever uses it. A type
guessed here would turn the id 0001 into 1.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from upslope.datasets.decoding import read_text
from upslope.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

Delimiter = Annotated[
    str | None,
    Field(
        description="between cells of CSV files: comma, semicolon, tab, bar or one character; told "
        "by the first lines, if not given"
    ),
]
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_DELIMITER_LINE = re.compile(r" *sep=([^\r\n ]) *(?:\r\n|\r|\n|$)", re.IGNORECASE)
_PROBE_LINES = 200
"""Lines by which the delimiter is told."""
_AT_ONCE = 20_000
"""Lines held as Python objects."""


def read_delimited(
    path: Path, encoding: str | None = None, delimiter: str | None = None
) -> tuple[pa.Table, tuple[str, ...]]:
    """Return (a table of text columns, notes) of a CSV or TSV file; blank lines are no rows.

    Raises:
        ConfigError: a delimiter that is not one character.
        DataError: lines of differing lengths, an unclosed quote, two columns of one name, columns
            without a name, a delimiter that cannot be told.
    """
    import pyarrow as pa

    by_name = {name: character for character, name in DELIMITERS.items()}
    delimiter = by_name.get(delimiter or "", delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigError(
            "Expected `data.delimiter` to be comma, semicolon, tab, bar or one character but got "
            f"{delimiter!r}."
        )
    stated_delimiter, text = cut_delimiter_line(read_text(path, encoding))
    lines_above = int(stated_delimiter is not None)
    delimiter = delimiter or stated_delimiter
    notes: list[str] = []
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter is None:
        delimiter = _delimiter(text, usual, path)
    if delimiter != usual:
        name = DELIMITERS.get(delimiter, repr(delimiter))
        notes.append(f"{path.name} has a {name} between cells, not a {DELIMITERS[usual]}.")
    with _long_cells():
        lines = _lines(text, delimiter, path, lines_above)
        names = next(lines, (0, []))[1]
        columns: list[list[pa.Array]] = [[] for _ in names]
        number = 1
        while chunk := list(islice(lines, _AT_ONCE)):
            for number, cells in chunk:
                if len(cells) != len(names):
                    raise DataError(
                        f"Expected {len(names)} cells, as in the first line, but line {number} of "
                        f"{path} has {len(cells)}: {delimiter.join(cells)[:80]!r}. A cell that "
                        f"holds {delimiter!r} needs double quotes around it."
                    )
            across = zip(*(cells for _, cells in chunk), strict=True)
            for column, down in zip(columns, across, strict=True):
                column.append(pa.array(down, pa.large_string()))
    arrays = [pa.chunked_array(chunks, pa.large_string()) for chunks in columns]
    named_columns, column_notes = _name_columns(names, arrays, path)
    return pa.table(named_columns), (*notes, *column_notes)


def cut_delimiter_line(text: str) -> tuple[str | None, str]:
    """Return (the character that Excel's own first line, such as sep=;, says to be between cells,
    the text without that line); None where the text has no such line.
    """
    if line := _DELIMITER_LINE.match(text):
        return line[1], text[line.end() :]
    return None, text


def _lines(
    text: str, delimiter: str, path: Path, lines_above: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the line where it ends, cells) of each line that is not blank.

    lines_above: of the file, that the text does not have.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield lines_above + reader.line_num, cells
    except csv.Error as error:
        raise DataError(
            f"Expected a table in {path} but reading it failed in line "
            f"{lines_above + reader.line_num}: {error}. A double quote inside a quoted cell is "
            "written twice."
        ) from error


def _delimiter(text: str, usual: str, path: Path) -> str:
    """Return the one character that cuts the first lines into cells of one number, `usual` if it
    does.

    Raises:
        DataError: several would do.
    """
    counts: dict[str, int] = {}
    for delimiter in DELIMITERS:
        try:
            lengths = [len(c) for _, c in islice(_lines(text, delimiter, path), _PROBE_LINES)]
        except DataError:
            continue
        # The last of the lines may be cut by nothing: all lines were parsed whole.
        if lengths and lengths[0] > 1 and len(set(lengths)) == 1:
            counts[delimiter] = lengths[0]
    others = [d for d in counts if d != usual]
    if usual in counts and all(counts[d] < counts[usual] for d in others):
        return usual
    if usual in counts or len(others) > 1:
        candidates = ", ".join(f"{DELIMITERS[d]} ({n} columns)" for d, n in counts.items())
        raise DataError(
            f"Expected one delimiter in {path} but several cut its lines evenly: {candidates}. Say "
            "which with `data.delimiter`."
        )
    return others[0] if others else usual


def _name_columns(
    names: list[str], columns: list[pa.ChunkedArray], path: Path
) -> tuple[dict[str, pa.ChunkedArray], tuple[str, ...]]:
    """Return (columns by name, notes) without nameless columns that hold nothing or count
    the rows.
    """
    import pyarrow.compute as pc

    by_name: dict[str, pa.ChunkedArray] = {}
    notes: list[str] = []
    for i, (name, column) in enumerate(zip(names, columns, strict=True), 1):
        if name.strip():
            if name in by_name:
                raise DataError(
                    f"Expected the columns of {path} to have names of their own but {name!r} is "
                    "there twice. Rename one."
                )
            by_name[name] = column
        elif not len(column) or not pc.any(pc.not_equal(column, "")).as_py():
            notes.append(f"Column {i} of {path.name} has no name and no cells: left out.")
        elif column.to_pylist() == [str(k) for k in range(len(column))]:
            notes.append(
                f"Column {i} of {path.name} has no name and counts the rows from 0, as the index "
                "that pandas writes: left out. Name it in the first line where it is an input."
            )
        else:
            raise DataError(
                f"Expected a name for every column in the first line of {path} but column {i} has "
                "none. Name it."
            )
    return by_name, tuple(notes)


@contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells of any length: the limit of the standard library guards against unclosed quotes,
    which are told here in any case."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
