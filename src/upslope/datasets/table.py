"""Rows of numbers and categories, from CSV, JSON Lines or Parquet, as vectors for a network.

Columns of numbers are standardised by the mean and the deviation of the rows outside the test set,
labelled or not: inputs alone are read for it. Columns of text or truth values, and those named in
`categorical`, become one position a category, 1 where it is the row's; a category that only the
test set has becomes zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.datasets.answers import Answers, Kind, Target, as_numbers, read_answers, split
from upslope.datasets.base import Splits
from upslope.datasets.files import needed_root
from upslope.datasets.rows import IdColumn, Rows, TestShare, read_rows
from upslope.datasets.unlabelled import ClassNames
from upslope.errors import DataError
from upslope.progress import Observer, silent

MOST = 1000
"""Categories of a column at most: more are ids or free text."""

Floats = NDArray[np.float32]
Missing = Literal["error", "fill"]


def load(
    root: Path | None = None,
    *,
    progress: Observer = silent,
    target: Target = None,
    classes: ClassNames = None,
    kind: Kind = "class",
    columns: Annotated[
        str | None, Field(description="columns of inputs, with commas between; all others if not")
    ] = None,
    categorical: Annotated[
        str, Field(description="columns of numbers that are categories, with commas between")
    ] = "",
    missing: Annotated[
        Missing, Field(description="an empty cell: stop, or take the mean and say that it is empty")
    ] = "error",
    id: IdColumn = None,
    test_share: TestShare = 0.2,
) -> Splits:
    """Your own table, CSV, TSV, JSON Lines or Parquet: numbers and categories in columns."""
    del progress
    path = needed_root(root, "table", "your own files")
    rows = read_rows(path, id)
    answers = read_answers(rows, target, kind, classes)
    pool, _ = rows.divided(answers.strata, test_share)
    values = features(rows, _inputs(rows, answers, columns), _names(categorical), pool, missing)
    return split(rows, rows.path.stem, values, answers, test_share)


def features(
    rows: Rows, names: list[str], categorical: list[str], pool: list[int], missing: Missing
) -> Floats:
    """(n, d): the columns side by side. pool: the rows whose inputs give the statistics.

    Raises:
        ConfigError: a column that does not exist.
        DataError: empty cells under missing="error"; a column that is neither numbers nor
            categories, or of more categories than 1,000.
    """
    import pyarrow as pa

    for name in categorical:
        rows.column(name, "categorical")
    parts: list[Floats] = []
    for name in names:
        column = rows.column(name, "columns")
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if number and name not in categorical:
            values = as_numbers(column, f"numbers in the column `{name}` of {rows.path}")
            empty = np.isnan(values)
            parts += _standardised(values, pool) if missing == "fill" or not empty.any() else []
        else:
            cells = column.to_pylist()
            empty = np.array([cell is None or cell == "" for cell in cells])
            parts.append(_one_hot(cells, empty, pool, name, rows))
        if missing == "error" and empty.any():
            raise DataError(
                f"Expected no empty cell among the inputs but {int(empty.sum())} of {len(empty)} "
                f"rows of {rows.path} have none in `{name}`, first "
                f"{rows.ids[int(empty.argmax())]!r}. Set `missing` to fill, or leave the column "
                "out with `columns`."
            )
    return np.concatenate(parts, axis=1)


def _standardised(values: NDArray[np.float64], pool: list[int]) -> list[Floats]:
    """The column, and where cells of the pool are empty, another that is 1 there."""
    empty = np.isnan(values)
    known = values[pool][~empty[pool]]
    mean = known.mean() if len(known) else 0.0
    spread = known.std() if len(known) else 0.0
    # A column that never changes has no scale, and becomes zeros.
    scaled = (np.where(empty, mean, values) - mean) / (spread if spread > 0 else 1.0)
    found = [scaled] + ([empty] if empty[pool].any() else [])
    return [part.astype(np.float32)[:, None] for part in found]


def _one_hot(
    cells: list[object], empty: NDArray[np.bool_], pool: list[int], name: str, rows: Rows
) -> Floats:
    """(n, categories of the pool); an empty cell is a category of its own."""
    keys = ["" if nothing else str(cell) for cell, nothing in zip(cells, empty, strict=True)]
    known = sorted({keys[i] for i in pool})
    if len(known) > MOST:
        raise DataError(
            f"Expected at most {MOST} categories in the column `{name}` of {rows.path} but got "
            f"{len(known)}: ids, or free text. Leave it out with `columns`, or name it in `id`."
        )
    place = {key: i for i, key in enumerate(known)}
    found = np.array([place.get(key, len(known)) for key in keys])
    return np.eye(len(known) + 1, dtype=np.float32)[found, : len(known)]


def _inputs(rows: Rows, answers: Answers, columns: str | None) -> list[str]:
    if columns is not None:
        return _names(columns)
    left_out = rows.used | set(answers.columns)
    names = [name for name in rows.table.column_names if name not in left_out]
    if not names:
        raise DataError(
            f"Expected columns of inputs in {rows.path} beside {', '.join(sorted(left_out))} but "
            "there are none."
        )
    return names


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
