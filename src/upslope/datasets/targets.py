"""Targets of the rows of a table: a class, a set of labels, or numbers.

    class    one column of names, whole numbers or truth values -> (n,) int64
    labels   several columns of 0 and 1                         -> (n, L) int64
    numbers  one or several columns of numbers                  -> (n, k) float32

An empty cell is an answer that nobody has given yet; the test set may hold none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from upslope.datasets.arrays import UNKNOWN, Array, ArrayDataset, Labels
from upslope.datasets.arrow import is_number, is_text, numbers_of
from upslope.datasets.base import Dataset
from upslope.datasets.cells import (
    comma_advice,
    finite,
    in_single_precision,
    refuse_merged,
    text_numbers,
)
from upslope.datasets.class_labels import read_classes
from upslope.datasets.duplicates import duplicate_notes, row_key
from upslope.datasets.missing import is_missing, known_in_part_notes, missing_notes
from upslope.datasets.name_lists import OptionalNames, split_names
from upslope.datasets.rows import Rows
from upslope.datasets.splits import Splits
from upslope.datasets.subset import Subset
from upslope.datasets.unlabelled import USUAL, NoTestSet, class_names
from upslope.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

_TRUTH = {"true": "1", "false": "0"}

Kind = Annotated[
    Literal["class", "labels", "numbers"],
    Field(description="what the targets are: a class, columns of 0 and 1, or numbers"),
]
Target = Annotated[
    OptionalNames,
    Field(
        description="columns of the targets, a list or with commas between; else label, class or "
        "target"
    ),
]


@dataclass(frozen=True)
class TargetColumns:
    """columns: where they come from. names: of the classes, labels or numbers. values: (n,) or
    (n, k), `UNKNOWN` or NaN where nobody knows. notes: as those of `Splits`."""

    columns: tuple[str, ...]
    names: tuple[str, ...]
    values: NDArray[Any]
    notes: tuple[str, ...] = ()

    @property
    def strata(self) -> Labels:
        """Return (n,): the class, or 0 where the answer is of another kind; `UNKNOWN` without
        one.
        """
        if self.values.ndim == 1:
            return np.asarray(self.values, dtype=np.int64)
        floats = self.values.dtype.kind == "f"
        missing = np.isnan(self.values) if floats else self.values == UNKNOWN
        return np.where(missing.any(axis=1), UNKNOWN, 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class RowsWithTargets:
    """Rows with several answers each: a data set in memory. place: their file, for messages."""

    name: str
    ids: Sequence[str]
    classes: tuple[str, ...]
    values: Array
    target_columns: TargetColumns
    resident: bool = True
    place: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of the input of one sample."""
        return tuple(self.values.shape[1:])

    @property
    def labels(self) -> Labels:
        """Return (n,): 0 where the answers are known, `UNKNOWN` elsewhere."""
        return self.target_columns.strata

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return (n, *input_shape), a copy."""
        return torch.from_numpy(self.values[np.asarray(indices, dtype=np.int64)])

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return (n, k). Raises DataError for a row with an answer missing."""
        positions = np.asarray(indices, dtype=np.int64)
        missing = positions[self.labels[positions] == UNKNOWN]
        if len(missing):
            raise DataError(
                f"Expected {', '.join(self.target_columns.columns)} of "
                f"{self.ids[missing[0]]!r} but a cell is empty ({len(missing)} of {len(positions)} "
                "rows asked for). An annotator must fill it."
            )
        return torch.from_numpy(self.target_columns.values[positions])


def read_targets(
    rows: Rows,
    target: str | list[str] | None,
    kind: str,
    missing_labels: Collection[str] | None = None,
    classes: Sequence[object] | None = None,
    has_kinds: bool = True,
) -> TargetColumns:
    """Return the answers of all rows.

    missing_labels: words that stand for no answer; None for the usual ones.

    classes: their names, in order; then no row need have one, and the column may be missing.
    has_kinds: the reader has the options `kind` and `decimal`, which messages may advise.

    Raises:
        ConfigError: columns that do not exist, or several for a class.
        DataError: values that are not of that kind.
    """
    if classes is not None and kind != "class":
        raise ConfigError(
            f"Expected `data.classes` to be left out where `data.kind` is {kind} but got "
            f"{list(classes)}: the columns of `data.target` are the names. They may be empty."
        )
    if classes is not None and target is None and not set(USUAL) & set(rows.table.column_names):
        names = tuple(class_names((), classes, rows.path))
        return TargetColumns((), names, np.full(len(rows.ids), UNKNOWN, dtype=np.int64))
    columns = _columns(rows, target, kind)
    if kind == "class":
        column = rows.column(columns[0], "target")
        what = f"classes in the column `{columns[0]}` of {rows.path}"
        _refuse_fractions(column, what, has_kinds)
        with_categories = rows.table.column(columns[0])  # those that no row has too
        return TargetColumns(
            columns, *read_classes(with_categories, what, missing_labels, class_list=classes)
        )
    read, notes = zip(
        *(_numbers(rows, name, kind, missing_labels) for name in columns), strict=True
    )
    all_notes = tuple(note for one in notes for note in one)
    values = np.stack(read, axis=1)
    all_notes += known_in_part_notes(np.isnan(values))
    if kind == "numbers":
        singles = in_single_precision(values, f"numbers in the targets of {rows.path}")
        return TargetColumns(columns, columns, singles, all_notes)
    wrong = ~np.isin(values, (0, 1)) & ~np.isnan(values)
    if wrong.any():
        row, column = (int(i[0]) for i in np.nonzero(wrong))
        raise DataError(
            f"Expected 0 or 1 in the columns of labels of {rows.path} but got "
            f"{values[row, column]:g} in `{columns[column]}` of {rows.ids[row]!r}."
        )
    labels = np.where(np.isnan(values), UNKNOWN, values).astype(np.int64)
    return TargetColumns(columns, columns, labels, all_notes)


def split(
    rows: Rows,
    name: str,
    values: Array,
    target_columns: TargetColumns,
    test_share: float,
    notes: Sequence[str] = (),
) -> Splits:
    """Return pool and test set of inputs (n, ...) and their answers."""
    pool, test = rows.divide(target_columns.strata, test_share)
    classes = target_columns.strata if target_columns.values.ndim == 1 else None
    keys = [row_key(row) for row in values]
    split_notes = (
        *rows.notes,
        *target_columns.notes,
        *notes,
        *duplicate_notes(keys, rows.ids, pool, test, classes),
    )
    everything: Dataset
    names, place = target_columns.names, str(rows.path)
    if classes is not None:
        everything = ArrayDataset(name, rows.ids, names, values, classes, place=place)
    else:
        everything = RowsWithTargets(name, rows.ids, names, values, target_columns, place=place)
    pool_part = Subset(everything, pool)
    test_part = Subset(everything, test) if test else NoTestSet(pool_part)
    return Splits(pool_part, test_part, notes=split_notes)


def _columns(rows: Rows, target: str | list[str] | None, kind: str) -> tuple[str, ...]:
    if target is None:
        usual = [name for name in USUAL if name in rows.table.column_names]
        if not usual:
            raise DataError(
                f"Expected a column {', '.join(USUAL[:-1])} or {USUAL[-1]} in {rows.path} but it "
                f"has {', '.join(map(repr, rows.table.column_names))}. Name it with `data.target`."
            )
        return (usual[0],)
    columns = tuple(split_names(target, "data.target"))
    if not columns:
        raise ConfigError(f"Expected `data.target` to name columns but got {target!r}.")
    if kind == "class" and len(columns) > 1:
        raise ConfigError(
            f"Expected one column of classes but `data.target` names {len(columns)}: "
            f"{', '.join(columns)}. Set `data.kind` to labels (0 or 1 in each) or numbers."
        )
    return columns


def _refuse_fractions(column: pa.ChunkedArray, what: str, has_kinds: bool) -> None:
    """Raise DataError where cells are numbers, and not all of them whole."""
    if is_text(column.type):
        for decimal in (".", ","):
            numbers, unread = text_numbers(column, decimal)
            if not unread.any():
                break
        else:
            return
        values = numbers.values[:, 0]
    elif is_number(column.type):
        values = numbers_of(column)
    else:
        return
    finite = values[~np.isnan(values)]
    fractions = finite[~np.isfinite(finite) | (finite != np.floor(finite))]
    if len(fractions):
        advice = (
            "Set `data.kind` to numbers (and `data.decimal` where there are decimal commas), or "
            "name another column with `data.target`."
            if has_kinds
            else "Name another column with `data.target`, or write the classes as words: texts "
            "are learnt with a class each."
        )
        raise DataError(
            f"Expected {what} to be names or whole numbers but got {fractions[0]:g}. {advice}"
        )


def _numbers(
    rows: Rows, name: str, kind: str, words: Collection[str] | None
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return ((n,) values, NaN where there is no answer; notes)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.column(name, "target")
    what = f"{kind} in the column `{name}` of {rows.path}"
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan), missing_notes([None] * len(column), words)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if is_number(column.type):
        values = finite(numbers_of(column), what)
        if not pa.types.is_floating(column.type):
            refuse_merged(column.to_pylist(), values, what)
        empty = int(np.isnan(values).sum())
        return values, missing_notes([""] * empty + ["0"] * (len(values) - empty), words)
    if not is_text(column.type):
        raise DataError(f"Expected {what} but got cells of type {column.type}.")
    cells = pc.fill_null(column, "").to_pylist()
    blanked_cells = ["" if is_missing(cell, words) else cell for cell in cells]
    if kind == "labels":
        blanked_cells = [_TRUTH.get(cell.strip().lower(), cell) for cell in blanked_cells]
    numbers, unread = text_numbers(pa.chunked_array([pa.array(blanked_cells)]), rows.decimal)
    # A word that the user took off the list is no number either.
    unread |= np.array([bool(n) for n in blanked_cells]) & np.isnan(numbers.values[:, 0])
    if unread.any():
        first = int(unread.argmax())
        advice = comma_advice(column, unread, rows.decimal)
        raise DataError(
            f"Expected {what} but {int(unread.sum()):,} of {len(cells):,} cells are no numbers, "
            f"first {cells[first]!r} of {rows.ids[first]!r}. "
            f"{advice or 'Empty the cells that have no answer.'}"
        )
    values = finite(numbers.values[:, 0], what)
    refuse_merged(cells, values, what)
    return values, missing_notes(cells, words)
