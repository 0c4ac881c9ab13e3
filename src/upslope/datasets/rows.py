"""Rows of table files: CSV, TSV, JSON Lines or Parquet, and which of them are the test set.

Either one file, where a column `split` holds "train" or "test", or `test_share` of the rows is set
apart by their ids; or a folder with `train.*` and `test.*`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN, Labels, numbered
from upslope.datasets.subset import draw
from upslope.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
BLOCK = 2**26  # bytes of a CSV file from which the types of its columns are told

TestShare = Annotated[
    float, Field(gt=0, lt=1, description="share of the rows to test on, where no file says which")
]
IdColumn = Annotated[
    str | None, Field(description="column of ids; `id`, or else the number of the row")
]


@dataclass(frozen=True)
class Rows:
    """test: (n,), True for the rows of the test set; None where the files do not say."""

    table: pa.Table
    ids: tuple[str, ...]
    test: NDArray[np.bool_] | None
    path: Path
    used: frozenset[str]
    """Columns that say what a row is and not what is in it: the ids, the split."""

    def column(self, name: str, option: str) -> pa.ChunkedArray:
        """A column; `option` is what named it.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.table.column_names:
            raise ConfigError(
                f"Expected `{option}` to name a column of {self.path} but got {name!r}; it has "
                f"{', '.join(self.table.column_names)}."
            )
        return self.table.column(name)

    def divided(self, labels: Labels, test_share: float) -> tuple[list[int], list[int]]:
        """(pool, test): as the files say, or `test_share` of each label, by the ids, of the rows
        that have one. The test set may be empty only where rows without a label leave too few
        for it."""
        is_test = self.test
        known = np.flatnonzero(labels != UNKNOWN)
        may_lack_test = is_test is None and len(known) < len(labels)
        if is_test is None and not len(known):
            is_test = np.zeros(len(labels), dtype=np.bool_)
        elif is_test is None:
            ids = [self.ids[i] for i in known.tolist()]
            drawn, _ = draw(ids, labels[known], round(test_share * len(known)), "test")
            is_test = np.isin(np.arange(len(labels)), known[drawn])
        test, pool = np.flatnonzero(is_test), np.flatnonzero(~is_test)
        if not len(pool) or not (len(test) or may_lack_test):
            raise DataError(
                f"Expected rows to learn from and rows to test on in {self.path} but got "
                f"{len(pool)} and {len(test)}. Raise `test_share`, or look at the column `split`."
            )
        return pool.tolist(), test.tolist()


def read_rows(root: Path, id_column: str | None) -> Rows:
    """The rows of a file, or of the folder's train.* and test.*, in the order of the files.

    Raises:
        ConfigError: no such column of ids.
        DataError: no such file, one that cannot be read, no rows, ids that are not distinct.
    """
    import pyarrow as pa

    files = _files(root)
    tables = [_read(path) for path in files]
    if tables[0].column_names and set(tables[0].column_names) != set(tables[-1].column_names):
        differing = sorted({*tables[0].column_names} ^ {*tables[-1].column_names})
        raise DataError(
            f"Expected the same columns in {files[0].name} and {files[-1].name} of {root} but "
            f"{', '.join(differing)} are in one alone."
        )
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"Expected columns of the same types in the files of {root} but: {error}."
        ) from error
    if not table.num_rows:
        raise DataError(f"Expected rows in {files[0]} but got none.")
    parts = [len(t) for t in tables]
    test = np.repeat([False, True], parts) if len(files) == 2 else None
    used = {"split"} & set(table.column_names)
    if test is None and used:
        test = _split(table.column("split").to_pylist(), files[0])
    ids = _ids(table, id_column, parts, files[0])
    if id_column or "id" in table.column_names:
        used.add(id_column or "id")
    return Rows(table, ids, test, root if len(files) == 2 else files[0], frozenset(used))


def _files(root: Path) -> list[Path]:
    """One file, or those of the training and the test set."""
    if root.is_file():
        return [root]
    found = sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES)
    pair = [next((p for p in found if p.stem == name), None) for name in ("train", "test")]
    if pair[0] and pair[1]:
        return [pair[0], pair[1]]
    if len(found) != 1:
        raise DataError(
            f"Expected one table in {root}, or train and test, as {', '.join(SUFFIXES)}, but got "
            f"{', '.join(p.name for p in found) or 'none'}. Give the path of the file itself."
        )
    return found


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return parquet.read_table(path)
        if suffix in (".jsonl", ".json"):
            return json.read_json(path)
        if suffix in (".csv", ".tsv"):
            return csv.read_csv(
                path,
                read_options=csv.ReadOptions(block_size=BLOCK),
                parse_options=csv.ParseOptions(
                    delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True
                ),
            )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Expected a table in {path} but reading it failed: {error}. The first line of CSV "
            "names the columns; JSON has one object a line."
        ) from error
    raise DataError(f"Expected a file of {', '.join(SUFFIXES)} but got {path}.")


def _split(values: list[Any], path: Path) -> NDArray[np.bool_]:
    unknown = {str(v) for v in values} - {"train", "test"}
    if unknown:
        raise DataError(
            f"Expected the column `split` of {path} to hold 'train' or 'test' but got "
            f"{sorted(unknown)[:5]}. Rename the column where it means something else."
        )
    return np.array([v == "test" for v in values])


def _ids(table: pa.Table, wanted: str | None, parts: Sequence[int], path: Path) -> tuple[str, ...]:
    name = wanted or "id"
    if name not in table.column_names:
        if wanted:
            raise ConfigError(
                f"Expected `id` to name a column of {path} but got {wanted!r}; it has "
                f"{', '.join(table.column_names)}."
            )
        if len(parts) == 1:
            return numbered("row", parts[0])
        return numbered("train", parts[0]) + numbered("test", parts[1])
    ids = tuple(str(v) for v in table.column(name).to_pylist())
    if len(set(ids)) != len(ids):
        twice = next(i for i, n in Counter(ids).items() if n > 1)
        raise DataError(
            f"Expected the ids in the column `{name}` of {path} to be distinct but {twice!r} "
            "comes twice. Name another column with `id`."
        )
    return ids
