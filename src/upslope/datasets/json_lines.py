"""Read JSON Lines: an object a line, whose keys name the columns.

By the JSON of the standard library, since pyarrow's ends the process on some damaged files, and
takes text that looks like a date for a date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from upslope.datasets.decoding import read_text
from upslope.errors import DataError
from upslope.files import object_of_pairs
from upslope.reading import check_room, reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa

_AT_ONCE = 20_000
"""Lines held as Python objects."""
_CELL = 8
"""Bytes that a cell of a table takes, at least."""
_DIGITS = 76  # that Arrow's largest decimals have
_LARGEST = 10**_DIGITS - 1
_ADVICE = "JSON Lines has one object per line."


def read_json_lines(path: Path, encoding: str | None = None) -> pa.Table:
    """Return the table of a JSON Lines file; a key that a line lacks is an empty cell there.

    Columns are in the order in which their keys first occur; blank lines are no rows.

    Raises:
        ConfigError: an encoding that does not exist.
        DataError: a line that is no object, a key twice in one, NaN or infinity, cells of a column
            that have no common type, or more of them than a file may make.
    """
    import pyarrow as pa

    rows = _rows(read_text(path, encoding), path)
    tables: list[pa.Table] = []
    columns: dict[str, None] = {}
    count = 0
    while chunk := list(islice(rows, _AT_ONCE)):
        names = dict.fromkeys(name for row in chunk for name in row)
        columns |= names
        count += len(chunk)
        # Lines with keys of their own each: a small file would make a table of any size.
        check_room(_CELL * count * len(columns), path)
        with reporting_damage(f"columns of one type each in {path}", "Write their cells alike."):
            tables.append(pa.table({name: _column(chunk, name) for name in names}))
    if not tables:
        raise DataError(f"Expected rows in {path} but got none.")
    with reporting_damage(f"columns of one type each in {path}", "Write their cells alike."):
        _check_large_numbers(tables)
        return pa.concat_tables(tables, promote_options="permissive")


def _check_large_numbers(tables: Sequence[pa.Table]) -> None:
    """Raise ValueError where some lines of a column have fractions, and others whole numbers that
    floats cannot hold: joined, those would be rounded."""
    import pyarrow as pa

    kinds: dict[str, set[bool]] = {}
    for field in (field for table in tables for field in table.schema):
        if pa.types.is_decimal(field.type) or pa.types.is_floating(field.type):
            kinds.setdefault(field.name, set()).add(pa.types.is_decimal(field.type))
    if both_kinds := [name for name, them in kinds.items() if len(them) > 1]:
        raise ValueError(f"in {both_kinds[0]!r}, fractions are beside whole numbers beyond 64 bits")


def _column(rows: Sequence[dict[str, Any]], name: str) -> pa.Array:
    import pyarrow as pa

    cells = [row.get(name) for row in rows]
    try:
        return pa.array(cells)
    except OverflowError:  # whole numbers beyond 64 bits, of which floats would keep 15 digits
        return _large_numbers(cells, name)
    except pa.ArrowException as error:
        raise ValueError(f"in {name!r}, {error}") from error


def _large_numbers(cells: Sequence[Any], name: str) -> pa.Array:
    """Return whole numbers of up to 76 digits and empty cells as decimals, exact."""
    import pyarrow as pa

    others = [cell for cell in cells if cell is not None and type(cell) is not int]
    if others:
        raise ValueError(f"in {name!r}, {others[0]!r} is beside whole numbers beyond 64 bits")
    if any(cell is not None and abs(cell) > _LARGEST for cell in cells):
        raise ValueError(f"in {name!r}, a whole number has more than {_DIGITS} digits")
    decimals = [None if cell is None else Decimal(cell) for cell in cells]
    return pa.array(decimals, pa.decimal256(_DIGITS))


def _rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=object_of_pairs, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            raise DataError(
                f"Expected a table in {path} but reading line {number:,} failed: {reason}. "
                f"{_ADVICE}"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"Expected an object in line {number:,} of {path} but got {line.strip()[:60]!r}. "
                f"{_ADVICE}"
            )
        yield row


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
