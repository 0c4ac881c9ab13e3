"""Rows of numbers and categories, from CSV, JSON Lines or Parquet, as vectors for a network.

Columns of numbers are standardised by the mean and the deviation of the rows outside the test set,
labelled or not: inputs alone are read for it. Lists of numbers count as so many columns. Columns of
text or truth values, and those named in `categorical`, become one position per category, 1 where
it is the row's; a category that only the test set has becomes zeros. What cannot be told to be one
or the other is refused (see `cells`); what was taken as which is in the notes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.counts import format_count
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.cells import Categories, Decimal, Numbers, looks_like_ids, read_input
from upslope.datasets.decoding import EncodingOption
from upslope.datasets.delimited import Delimiter
from upslope.datasets.missing import MissingLabels, is_missing
from upslope.datasets.name_lists import Names, OptionalNames, split_names
from upslope.datasets.paths import needed_root
from upslope.datasets.rows import IdColumn, Rows, TestShare, read_rows
from upslope.datasets.similar_names import similar_name_notes
from upslope.datasets.splits import Splits
from upslope.datasets.targets import Kind, Target, TargetColumns, read_targets, split
from upslope.datasets.unlabelled import ClassNames
from upslope.errors import ConfigError, DataError
from upslope.progress import Observer, no_progress

MOST = 1000
"""Categories of a column at most: more are ids or free text."""
_LEAST = 1e-150
_MARKS = tuple(sign * (10.0**digits - 1) for digits in (3, 4, 5, 6) for sign in (-1, 1))
"""What instruments and registers write where nothing is known: -999, 9999 and the like."""
_LEAST_COUNTS = 10
"""Rows from which a column of numbers that counts them is pointed at."""
_ID_NAME = re.compile(r"(^|[\W_])(id|ids|uuid|guid|index|key|nr|no|number)$", re.IGNORECASE)
_FOLD_NAME = re.compile(
    r"((cv|k|test|train|val)[\W_]?)?folds?([\W_]?(id|index|nr|no|number))?|partition|subset",
    re.IGNORECASE,
)
"""Names of columns that mostly say in which part of a cross-validation a row is."""

Floats = NDArray[np.float32]
Missing = Literal["error", "fill"]


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    target: Target = None,
    classes: ClassNames = None,
    kind: Kind = "class",
    columns: Annotated[
        OptionalNames,
        Field(description="columns of inputs, a list or with commas between; all others if not"),
    ] = None,
    categorical: Annotated[
        Names,
        Field(description="columns of numbers that are categories, a list or with commas between"),
    ] = "",
    missing: Annotated[
        Missing, Field(description="an empty cell: stop, or take the mean and say that it is empty")
    ] = "error",
    missing_labels: MissingLabels = None,
    id: IdColumn = None,
    test_share: TestShare = 0.2,
    encoding: EncodingOption = None,
    delimiter: Delimiter = None,
    decimal: Decimal = "point",
) -> Splits:
    """Your own table, CSV, TSV, JSON Lines or Parquet: numbers and categories in columns."""
    del progress
    path = needed_root(root, "table", "your own files")
    rows = read_rows(path, id, encoding=encoding, delimiter=delimiter, decimal=decimal)
    return from_rows(
        rows, target, classes, kind, columns, categorical, missing, missing_labels, test_share
    )


def from_rows(
    rows: Rows,
    target: str | list[str] | None,
    classes: Sequence[object] | None,
    kind: Kind,
    columns: str | list[str] | None,
    categorical: str | list[str],
    missing: Missing,
    missing_labels: Collection[str] | None,
    test_share: float,
) -> Splits:
    """Make the splits of rows; the arguments are the options of `load`."""
    target_columns = read_targets(rows, target, kind, missing_labels, classes)
    pool, _ = rows.divide(target_columns.strata, test_share)
    names = _inputs(rows, target_columns, columns)
    as_categories = split_names(categorical, "data.categorical")
    values, notes = features(rows, names, as_categories, pool, missing)
    notes = (*notes, *_copies_of_target(rows, names, target_columns))
    if columns is None:
        notes = (*notes, *map(_fold_note, filter(_FOLD_NAME.fullmatch, names)))
    return split(rows, rows.path.stem, values, target_columns, test_share, notes)


def features(
    rows: Rows, names: list[str], categorical: list[str], pool: list[int], missing: Missing
) -> tuple[Floats, tuple[str, ...]]:
    """Return ((n, d): the columns side by side, notes). pool: the rows that give the statistics.

    Raises:
        ConfigError: a column that does not exist.
        DataError: empty cells under missing="error"; a column that is neither numbers nor
            categories; one of ids or of more categories than 1,000.
    """
    for name in categorical:
        rows.column(name, "categorical")
    parts: list[Floats] = []
    notes: list[str] = []
    categories: dict[str, int] = {}
    for name in names:
        column = read_input(rows, name, name in categorical)
        if missing == "error" and column.empty.any():
            raise DataError(_empty_cells(column, name, rows))
        if isinstance(column, Categories):
            part = _one_hot(column, pool, name, rows, ids_allowed=name in categorical)
            categories[name] = part.shape[1]
            parts.append(part)
            notes += _category_notes(column, pool, name)
        elif np.isnan(column.values).all():
            notes.append(f"The column `{name}` is empty in every row: left out.")
        else:
            parts += _standardise(column.values, pool)
            notes += _number_notes(column, pool, name)
    if not parts:
        raise DataError(f"Expected columns of inputs in {rows.path} but all are empty.")
    if categories:
        columns = ", ".join(f"{name} ({count:,})" for name, count in categories.items())
        notes.insert(0, f"Columns taken as categories, with one input each: {columns}.")
    return np.concatenate(parts, axis=1), tuple(notes)


def _fold_note(name: str) -> str:
    return (
        f"The column `{name}` is an input as the others are, and divides nothing. Where it says "
        "in which part of a cross-validation a row is, leave it out by `data.columns`."
    )


def _empty_cells(column: Numbers | Categories, name: str, rows: Rows) -> str:
    empty = column.empty
    words = column.words if isinstance(column, Numbers) else {}
    said = f", or a word for none ({', '.join(f'{w!r} {n:,}' for w, n in words.items())})"
    return (
        f"Expected no empty cell among the inputs but {int(empty.sum())} of {len(empty)} rows of "
        f"{rows.path} have none in `{name}`{said if words else ''}, first "
        f"{rows.ids[int(empty.argmax())]!r}. Set `data.missing` to fill, or leave the column out "
        "with `data.columns`."
    )


def _standardise(values: NDArray[np.float64], pool: list[int]) -> list[Floats]:
    """Return (n, k) standardised, and where cells of the pool are empty, (n, 1) that is 1 there."""
    parts: list[NDArray[Any]] = []
    for column in values.T:
        empty = np.isnan(column)
        pool_values = column[pool][~empty[pool]]
        # A column that never changes in the pool has no scale, and becomes zeros everywhere.
        if not len(pool_values) or pool_values.min() == pool_values.max():
            parts.append(np.zeros(len(column)))
        else:
            # Beyond the root of the largest float, squares overflow; below it, they vanish.
            unit = (
                1.0
                if _LEAST < np.abs(pool_values).max() < 1 / _LEAST
                else np.abs(pool_values).max()
            )
            mean, spread = (pool_values / unit).mean(), (pool_values / unit).std()
            parts.append((np.where(empty, mean, column / unit) - mean) / spread)
    incomplete = np.asarray(np.isnan(values).any(axis=1))
    if incomplete[pool].any():
        parts.append(incomplete)
    return [part.astype(np.float32)[:, None] for part in parts]


def _one_hot(
    column: Categories, pool: list[int], name: str, rows: Rows, *, ids_allowed: bool
) -> Floats:
    """Return (n, categories of the pool); an empty cell is a category of its own."""
    pool_categories = sorted({column.cells[i] for i in pool})
    if len(pool_categories) > MOST:
        raise DataError(
            f"Expected at most {MOST} categories in the column `{name}` of {rows.path} but got "
            f"{len(pool_categories)}: ids, or free text. Leave it out with `data.columns`, or name "
            "it in "
            "`data.id`."
        )
    if not ids_allowed and looks_like_ids(column):
        raise DataError(
            f"Expected categories in the column `{name}` of {rows.path} but nearly every row has "
            f"one of its own, as {column.cells[0]!r}: ids, or free text. Leave it out with "
            "`data.columns`, name it in `data.id`, or in `data.categorical` where they are "
            "categories."
        )
    place = {key: i for i, key in enumerate(pool_categories)}
    positions = np.array([place.get(cell, len(pool_categories)) for cell in column.cells])
    return np.eye(len(pool_categories) + 1, dtype=np.float32)[positions, : len(pool_categories)]


def _category_notes(column: Categories, pool: list[int], name: str) -> list[str]:
    notes = []
    counts = Counter(column.cells)
    pool_categories = {column.cells[i] for i in pool}
    if unseen := sorted(counts.keys() - pool_categories):
        total = sum(counts[cell] for cell in unseen)
        notes.append(
            f"{format_count(total, 'test row')} with a category in `{name}` that the pool has not, "
            f"first {unseen[0]!r}: all zeros."
        )
    notes += similar_name_notes(sorted(counts), "categories", f" of `{name}`")
    if len(pool_categories) == 1:
        notes.append(f"The column `{name}` never changes in the pool, and tells nothing.")
    if empty := counts[""]:
        notes.append(f"{empty:,} of {counts.total():,} cells of `{name}` are empty: a category.")
    words = {cell: n for cell, n in counts.items() if cell.strip() and is_missing(cell)}
    if words:
        word_counts = ", ".join(f"{word!r} ({n:,})" for word, n in sorted(words.items()))
        notes.append(
            f"In `{name}` words for missing are categories as others are: {word_counts}. Empty the "
            "cells "
            "where nothing is known."
        )
    return notes


def _number_notes(column: Numbers, pool: list[int], name: str) -> list[str]:
    notes = []
    values = column.values
    if empty := int(column.empty.sum()):
        words = "".join(f", {word!r} ({n:,})" for word, n in column.words.items())
        notes.append(
            f"{empty:,} of {len(values):,} cells of `{name}` are empty{words}: filled with the "
            "mean of the pool."
        )
    if column.leading_zero is not None:
        notes.append(
            f"The column `{name}` is taken as numbers but has leading zeros, as "
            f"{column.leading_zero!r}: where they are codes, name it in `data.categorical`."
        )
    if column.grouped is not None:
        notes.append(
            f"The column `{name}` has three digits after the point in every cell, as "
            f"{column.grouped!r}: where the point is between thousands, remove it."
        )
    pool_values = values[pool][~np.isnan(values[pool])]
    if (mark := _mark_for_none(pool_values)) is not None:
        notes.append(
            f"The column `{name}` has {mark:g} in {int((pool_values == mark).sum()):,} of "
            f"{len(pool_values):,} cells of the pool, far from all others: where it stands for "
            "nothing "
            "known, empty these cells."
        )
    if values.shape[1] > 1:
        notes.append(f"The lists of `{name}` are taken as {values.shape[1]:,} numbers each.")
    elif not len(pool_values) or pool_values.min() == pool_values.max():
        notes.append(f"The column `{name}` never changes in the pool, and tells nothing.")
    elif _written_dates(pool_values):
        notes.append(
            f"The column `{name}` is taken as numbers but may hold dates such as "
            f"{pool_values[0]:.0f}, "
            "between which the steps are uneven: convert them to days since a date."
        )
    elif _counts_rows(values[:, 0]) or (_ID_NAME.search(name) and _distinct(values[:, 0])):
        notes.append(
            f"The column `{name}` is taken as numbers but is a whole number of its own in every "
            "row: where these are ids, name it in `data.id`, or leave it out with `data.columns`."
        )
    return notes


def _mark_for_none(values: NDArray[np.float64]) -> float | None:
    """Return a number such as -999 that is there several times, far outside the range of all
    others.
    """
    for mark in _MARKS:
        others = values[values != mark]
        if not 2 <= len(values) - len(others) < len(values) or not len(others):
            continue
        low, high = others.min(), others.max()
        if min(abs(mark - low), abs(mark - high)) > max(high - low, abs(low), abs(high)):
            if low <= mark <= high:
                continue
            return mark
    return None


def _written_dates(values: NDArray[np.float64]) -> bool:
    """Return whether all are whole numbers such as 20200131."""
    if not len(values) or values.min() < 19000101 or values.max() > 21001231:
        return False
    month, day = values // 100 % 100, values % 100
    whole = values == np.floor(values)
    return bool((whole & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _distinct(values: NDArray[np.float64]) -> bool:
    """Return whether all are whole numbers, each there once."""
    return (
        len(values) >= _LEAST_COUNTS
        and bool((values == np.floor(values)).all())
        and len(np.unique(values)) == len(values)
    )


def _counts_rows(values: NDArray[np.float64]) -> bool:
    return _distinct(values) and values.max() - values.min() == len(values) - 1


def _inputs(
    rows: Rows, target_columns: TargetColumns, columns: str | list[str] | None
) -> list[str]:
    left_out = rows.used | set(target_columns.columns)
    if columns is not None:
        names = split_names(columns, "data.columns")
        if not names:
            raise ConfigError(
                f"Expected `data.columns` to name columns of inputs but got {columns!r}. Leave it "
                "out to take all."
            )
        if targets := [name for name in names if name in target_columns.columns]:
            raise ConfigError(
                f"Expected `data.columns` to name inputs alone but got {targets[0]!r}, a target."
            )
        return names
    names = [name for name in rows.table.column_names if name not in left_out]
    if not names:
        raise DataError(
            f"Expected columns of inputs in {rows.path} beside {', '.join(sorted(left_out))} but "
            "there are none."
        )
    return names


def _copies_of_target(
    rows: Rows, names: list[str], target_columns: TargetColumns
) -> tuple[str, ...]:
    """Sentences about columns that have one value for each class, and another for each other."""
    if target_columns.values.ndim != 1:
        return ()
    import pyarrow as pa
    import pyarrow.compute as pc

    labelled = pa.array(target_columns.strata != UNKNOWN)
    labels = target_columns.strata[target_columns.strata != UNKNOWN].tolist()
    notes = []
    for name in names:
        column = rows.column(name, "columns")
        if pa.types.is_nested(column.type):
            continue
        cells = column.filter(labelled)
        if pc.count_distinct(cells, mode="all").as_py() != len(set(labels)):
            continue
        if len(set(zip(cells.to_pylist(), labels, strict=True))) == len(set(labels)):
            notes.append(
                f"The column `{name}` has one value per class: a copy of the target? Leave it out "
                "with `data.columns` where it is not known before the label is."
            )
    return tuple(notes)
