"""What a table says of its rows: a class, a set of labels, or numbers.

    class    one column of names, whole numbers or truth values -> (n,) int64
    labels   several columns of 0 and 1                         -> (n, L) int64
    numbers  one or several columns of numbers                  -> (n, k) float32

An empty cell is an answer that nobody has given yet; the test set may hold none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from upslope.datasets.arrays import UNKNOWN, Array, ArrayDataset, Labels
from upslope.datasets.base import Dataset, Splits
from upslope.datasets.rows import Rows
from upslope.datasets.subset import Subset
from upslope.datasets.unlabelled import USUAL, NoTestSet, class_names
from upslope.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Annotated[
    Literal["class", "labels", "numbers"],
    Field(description="what the targets are: a class, columns of 0 and 1, or numbers"),
]
Target = Annotated[
    str | None,
    Field(description="columns of the targets, with commas between; label, class or target"),
]


@dataclass(frozen=True)
class Answers:
    """columns: where they come from. names: of the classes, labels or numbers. values: (n,) or
    (n, k), `UNKNOWN` or NaN where nobody knows."""

    columns: tuple[str, ...]
    names: tuple[str, ...]
    values: NDArray[Any]

    @property
    def strata(self) -> Labels:
        """(n,): the class, or 0 where the answer is of another kind; `UNKNOWN` without one."""
        if self.values.ndim == 1:
            return np.asarray(self.values, dtype=np.int64)
        floats = self.values.dtype.kind == "f"
        missing = np.isnan(self.values) if floats else self.values == UNKNOWN
        return np.where(missing.any(axis=1), UNKNOWN, 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class AnsweredRows:
    """Rows with several answers each: a data set in memory."""

    name: str
    ids: Sequence[str]
    classes: tuple[str, ...]
    values: Array
    answers: Answers
    resident: bool = True

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.values.shape[1:])

    @property
    def labels(self) -> Labels:
        """(n,): 0 where the answers are known, `UNKNOWN` elsewhere."""
        return self.answers.strata

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, *input_shape), a copy."""
        return torch.from_numpy(self.values[np.asarray(indices, dtype=np.int64)])

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n, k). Raises DataError for a row with an answer missing."""
        positions = np.asarray(indices, dtype=np.int64)
        missing = positions[self.labels[positions] == UNKNOWN]
        if len(missing):
            raise DataError(
                f"Expected {', '.join(self.answers.columns)} of {self.ids[missing[0]]!r} but a "
                f"cell is empty ({len(missing)} of {len(positions)} rows asked for). An annotator "
                "must fill it."
            )
        return torch.from_numpy(self.answers.values[positions])


def read_answers(
    rows: Rows, target: str | None, kind: str, classes: Sequence[object] | None = None
) -> Answers:
    """The answers of all rows.

    classes: their names, in order; then no row need have one, and the column may be missing.

    Raises:
        ConfigError: columns that do not exist, or several for a class.
        DataError: values that are not of that kind.
    """
    if classes is not None and kind != "class":
        raise ConfigError(
            f"Expected `classes` to be left out where `kind` is {kind} but got {list(classes)}: "
            "the columns of `target` are the names. They may be empty."
        )
    if classes is not None and target is None and not set(USUAL) & set(rows.table.column_names):
        names = tuple(class_names((), classes, rows.path))
        return Answers((), names, np.full(len(rows.ids), UNKNOWN, dtype=np.int64))
    columns = _columns(rows, target, kind)
    if kind == "class":
        return _class(rows, columns[0], classes)
    read = [_numbers(rows, name, kind) for name in columns]
    values = np.stack(read, axis=1)
    if kind == "numbers":
        return Answers(columns, columns, values.astype(np.float32))
    wrong = ~np.isin(values, (0, 1)) & ~np.isnan(values)
    if wrong.any():
        row, column = (int(i[0]) for i in np.nonzero(wrong))
        raise DataError(
            f"Expected 0 or 1 in the columns of labels of {rows.path} but got "
            f"{values[row, column]:g} in `{columns[column]}` of {rows.ids[row]!r}."
        )
    return Answers(columns, columns, np.where(np.isnan(values), UNKNOWN, values).astype(np.int64))


def split(rows: Rows, name: str, values: Array, answers: Answers, test_share: float) -> Splits:
    """Pool and test set of inputs (n, ...) and their answers."""
    pool, test = rows.divided(answers.strata, test_share)
    everything: Dataset
    if answers.values.ndim == 1:
        everything = ArrayDataset(name, rows.ids, answers.names, values, answers.strata)
    else:
        everything = AnsweredRows(name, rows.ids, answers.names, values, answers)
    pool_part = Subset(everything, pool)
    return Splits(pool_part, Subset(everything, test) if test else NoTestSet(pool_part))


def _columns(rows: Rows, target: str | None, kind: str) -> tuple[str, ...]:
    if target is None:
        found = [name for name in USUAL if name in rows.table.column_names]
        if not found:
            raise DataError(
                f"Expected a column {', '.join(USUAL[:-1])} or {USUAL[-1]} in {rows.path} but it "
                f"has {', '.join(rows.table.column_names)}. Name it with `target`."
            )
        return (found[0],)
    columns = tuple(name.strip() for name in target.split(","))
    if kind == "class" and len(columns) > 1:
        raise ConfigError(
            f"Expected one column of classes but `target` names {len(columns)}: {target}. Set "
            "`kind` to labels (0 or 1 in each) or numbers."
        )
    return columns


def _class(rows: Rows, name: str, classes: Sequence[object] | None) -> Answers:
    import pyarrow as pa

    column = rows.column(name, "target")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise DataError(
            f"Expected classes, names or whole numbers, in the column `{name}` of {rows.path} but "
            f"got {column.type}. Set `kind` to numbers, or name another column with `target`."
        )
    cells = [None if cell == "" else cell for cell in column.to_pylist()]
    known: list[Any] = sorted({cell for cell in cells if cell is not None})
    if classes is not None:
        known = class_names({str(cell) for cell in known}, classes, rows.path)
        cells = [None if cell is None else str(cell) for cell in cells]
    if len(known) < 2:
        raise DataError(
            f"Expected at least 2 classes in the column `{name}` of {rows.path} but got {known}."
            " Where nothing is labelled yet, name the classes: data.classes=[cat,dog]."
        )
    number = {cell: i for i, cell in enumerate(known)}
    values = np.array([UNKNOWN if c is None else number[c] for c in cells], dtype=np.int64)
    return Answers((name,), tuple(str(cell) for cell in known), values)


def _numbers(rows: Rows, name: str, kind: str) -> NDArray[np.float64]:
    column = rows.column(name, "target")
    return as_numbers(column, f"{kind} in the column `{name}` of {rows.path}")


def as_numbers(column: pa.ChunkedArray, what: str) -> NDArray[np.float64]:
    """(n,) float64 with NaN for empty cells; DataError for a column of another type, or infinity.

    what: "numbers in the column ..." for the message.
    """
    import pyarrow as pa

    kind = column.type
    if pa.types.is_null(kind):  # every cell is empty
        return np.full(len(column), np.nan)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"Expected {what} but got cells of type {kind}.")
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    if np.isinf(values).any():
        raise DataError(f"Expected finite {what} but row {int(np.isinf(values).argmax())} is not.")
    return values
