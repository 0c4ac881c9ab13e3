"""Rows of table files: CSV, TSV, JSON Lines or Parquet, and which of them are the test set.

Either one file, where a column `split` holds "train" or "test", or `test_share` of the rows is set
apart by their ids; or a folder with `train.*` and `test.*`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN, Labels, number_ids
from upslope.datasets.arrow import is_number, is_text, plain_column, read_parquet, texts_of
from upslope.datasets.delimited import read_delimited
from upslope.datasets.folder_names import split_of
from upslope.datasets.json_lines import read_json_lines
from upslope.datasets.paths import visible
from upslope.datasets.subset import draw
from upslope.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITED_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*DELIMITED_SUFFIXES, ".parquet", ".jsonl", ".json")

TestShare = Annotated[
    float, Field(gt=0, lt=1, description="share of the rows to test on, where no file says which")
]
IdColumn = Annotated[
    str | None, Field(description="column of ids; `id`, or else the number of the row")
]


_MANY = 20
"""More distinct values than any column of splits has."""
_ASKS_FOR_SPLIT = re.compile(
    r"(is|in)[ _-]?(the[ _-])?(test|train|training|val|valid|validation|holdout)([ _-]?set)?",
    re.IGNORECASE,
)
"""Names of columns of 0 and 1 that say which rows are to test on."""


@dataclass(frozen=True)
class Rows:
    """The rows of a table, with their ids.

    test: (n,), True for the rows of the test set; None where the files do not say. used: columns
    that say what a row is and not what is in it, the ids and the split. untyped: cells are text as
    written, from CSV, and what they mean is told by their content. decimal: the character between
    whole and fraction in cells that are text. notes: as those of `Splits`.
    """

    table: pa.Table
    ids: tuple[str, ...]
    test: NDArray[np.bool_] | None
    path: Path
    used: frozenset[str]
    untyped: bool = False
    decimal: str = "."
    notes: tuple[str, ...] = ()

    def column(self, name: str, option: str) -> pa.ChunkedArray:
        """Return a column in its plain type; `option` is what named it.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.table.column_names:
            raise ConfigError(
                f"Expected `data.{option}` to name a column of {self.path} but got {name!r}; it "
                f"has {', '.join(self.table.column_names)}."
            )
        return plain_column(self.table.column(name))

    def divide(self, labels: Labels, test_share: float) -> tuple[list[int], list[int]]:
        """Return (pool, test): as the files say, or `test_share` of each label, by the ids, of the
        rows that have one. The test set may be empty only where rows without a label leave too few
        for it.
        """
        is_test = self.test
        with_label = np.flatnonzero(labels != UNKNOWN)
        may_lack_test = is_test is None and len(with_label) < len(labels)
        if is_test is None and not len(with_label):
            is_test = np.zeros(len(labels), dtype=np.bool_)
        elif is_test is None:
            ids = [self.ids[i] for i in with_label.tolist()]
            positions, _ = draw(
                ids, labels[with_label], round(test_share * len(with_label)), "test"
            )
            is_test = np.isin(np.arange(len(labels)), with_label[positions])
        test, pool = np.flatnonzero(is_test), np.flatnonzero(~is_test)
        if not len(pool) or not (len(test) or may_lack_test):
            raise DataError(
                f"Expected rows to learn from and rows to test on in {self.path} but got "
                f"{len(pool)} and {len(test)}. Raise `data.test_share`, or look at the column "
                "`split`."
            )
        return pool.tolist(), test.tolist()


def read_rows(
    root: Path,
    id_column: str | None,
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    decimal: str = "point",
) -> Rows:
    """Return the rows of a file, or of the folder's train.* and test.*, in the order of the files.

    Raises:
        ConfigError: no such column of ids; a delimiter for files that have none.
        DataError: no such file, one that cannot be read, no rows, ids that are missing or not
            distinct.
    """
    files, notes = _files(root)
    tables = [_read(path, encoding, delimiter) for path in files]
    return rows_of(
        [table for table, _ in tables],
        root if len(files) == 2 else files[0],
        id_column,
        is_untyped=all(path.suffix.lower() in DELIMITED_SUFFIXES for path in files),
        decimal={"point": ".", "comma": ","}.get(decimal, decimal),
        notes=(*notes, *(note for _, table_notes in tables for note in table_notes)),
    )


def rows_of(
    tables: Sequence[pa.Table],
    path: Path,
    id_column: str | None,
    *,
    is_untyped: bool = False,
    decimal: str = ".",
    notes: tuple[str, ...] = (),
) -> Rows:
    """Return the rows of one table, or of a training and a test table.

    path: what messages name. The rest is as for `Rows`.

    Raises:
        ConfigError: no such column of ids.
        DataError: tables whose columns differ, no rows, ids that are missing or not distinct.
    """
    import pyarrow as pa

    if tables[0].column_names and set(tables[0].column_names) != set(tables[-1].column_names):
        differing = sorted({*tables[0].column_names} ^ {*tables[-1].column_names})
        raise DataError(
            f"Expected the same columns in train and test of {path} but {', '.join(differing)} are "
            "in one alone."
        )
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"Expected columns of the same types in train and test of {path} but: {error}."
        ) from error
    if not table.num_rows:
        raise DataError(f"Expected rows in {path} but got none.")
    parts = [len(t) for t in tables]
    test = np.repeat([False, True], parts) if len(tables) == 2 else None
    split_columns = {"split"} & set(table.column_names)
    if test is None and split_columns:
        test = _split(table.column("split").to_pylist(), path)
    if test is None:
        _check_no_split_elsewhere(table, path)
    ids = _ids(table, id_column, parts, path)
    id_name = id_column or "id"
    if id_name in table.column_names:
        split_columns.add(id_name)
        kind = plain_column(table.column(id_name)).type
        if is_number(kind) and not pa.types.is_integer(kind):
            notes = (
                *notes,
                f"Ids in the column `{id_name}` are whole numbers of type {kind}, written without "
                f"a fraction, as {ids[0]!r}.",
            )
    return Rows(
        table,
        ids,
        test,
        path,
        frozenset(split_columns),
        is_untyped,
        decimal,
        notes,
    )


def _files(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return (one file, or those of the training and the test set; notes)."""
    if root.is_file():
        return [root], ()
    tables = visible(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES)
    pair = [[p for p in tables if p.stem.lower() == name] for name in ("train", "test")]
    if all(len(files) == 1 for files in pair):
        files = [one for files in pair for one in files]
        others = ", ".join(p.name for p in tables if p not in files)
        return files, (f"Not read in {root.name}: {others}.",) if others else ()
    if len(tables) != 1:
        raise DataError(
            f"Expected one table in {root}, or train and test, as {', '.join(SUFFIXES)}, but got "
            f"{', '.join(p.name for p in tables) or 'none'}. Give the path of the file itself."
        )
    return tables, ()


def _read(
    path: Path, encoding: str | None, delimiter: str | None
) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the table, and notes on how it was read."""
    suffix = path.suffix.lower()
    if suffix in DELIMITED_SUFFIXES:
        return read_delimited(path, encoding, delimiter)
    if delimiter is not None:
        raise ConfigError(
            f"Expected `data.delimiter` for {' and '.join(DELIMITED_SUFFIXES)} files alone but got "
            f"{delimiter!r} for {path}. Leave it out."
        )
    if suffix == ".parquet":
        table = read_parquet(path)
    elif suffix in (".jsonl", ".json"):
        table = read_json_lines(path, encoding)
    else:
        raise DataError(f"Expected a file of {', '.join(SUFFIXES)} but got {path}.")
    twice = [name for name, n in Counter(table.column_names).items() if n > 1]
    if twice:
        raise DataError(
            f"Expected the columns of {path} to have names of their own but {twice[0]!r} is there "
            "twice. Rename one."
        )
    return table, ()


def _check_no_split_elsewhere(table: pa.Table, path: Path) -> None:
    """Raise DataError where a column divides the rows into splits but is not called `split`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in table.column_names:
        column = plain_column(table.column(name))
        if pa.types.is_nested(column.type):
            continue
        divides = bool(_ASKS_FOR_SPLIT.fullmatch(name))
        if is_text(column.type) and not divides:
            values = [value for value in pc.unique(column)[:_MANY].to_pylist() if value]
            splits = {split_of(value) for value in values}
            divides = None not in splits and {"train"} < splits
        if divides:
            raise DataError(
                f"Expected the column `{name}` of {path}, which seems to say what is to train and "
                "what to test on, to be called `split`, with 'train' and 'test' in it. Rename it, "
                "or remove it where it means something else: rows to test on would be in the pool."
            )


def _split(values: list[Any], path: Path) -> NDArray[np.bool_]:
    others = {str(v) for v in values} - {"train", "test"}
    if others:
        raise DataError(
            f"Expected the column `split` of {path} to hold 'train' or 'test' but got "
            f"{sorted(others)[:5]}. Rename the column where it means something else."
        )
    return np.array([v == "test" for v in values])


def _ids(table: pa.Table, column: str | None, parts: Sequence[int], path: Path) -> tuple[str, ...]:
    name = column or "id"
    if name not in table.column_names:
        if column:
            raise ConfigError(
                f"Expected `data.id` to name a column of {path} but got {column!r}; it has "
                f"{', '.join(table.column_names)}."
            )
        if len(parts) == 1:
            return number_ids("row", parts[0])
        return number_ids("train", parts[0]) + number_ids("test", parts[1])
    cells = texts_of(plain_column(table.column(name)), f"ids in the column `{name}` of {path}")
    ids = tuple(cell for cell in cells if cell)
    if len(ids) < len(cells):
        first = next(i for i, cell in enumerate(cells) if not cell)
        raise DataError(
            f"Expected an id in every row of {path} but {len(cells) - len(ids)} of {len(cells)} "
            f"have none in the column `{name}`, first row {first + 1}. Fill them, or name another "
            "column with `data.id`."
        )
    if len(set(ids)) != len(ids):
        twice = next(i for i, n in Counter(ids).items() if n > 1)
        raise DataError(
            f"Expected the ids in the column `{name}` of {path} to be distinct but {twice!r} "
            "comes twice. Name another column with `data.id`."
        )
    return ids
