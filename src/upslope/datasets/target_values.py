"""Targets that a program holds in memory: classes, label sets, numbers or masks, one per sample.

    class    (n,) whole numbers from 0, or names      -> (n,) int64, -1 where nobody knows
    labels   (n, L) of 0 and 1                        -> (n, L) int64, -1 where nobody knows
    numbers  (n,) or (n, k) numbers                   -> (n, k) float32, NaN where nobody knows
    masks    (n, h, w) whole numbers                  -> (n, h, w) uint8, 255 where ignored

Several parts, as the pool and the test set, are read together, so that they share their classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upslope.datasets.arrays import UNKNOWN, Array, absent_number_notes, are_sparse, refuse_wrapped
from upslope.datasets.cells import in_single_precision, refuse_merged
from upslope.datasets.class_labels import read_classes
from upslope.datasets.mask_classes import IGNORE
from upslope.datasets.missing import known_in_part_notes
from upslope.datasets.unlabelled import class_names, refuse_one_text
from upslope.errors import ConfigError, DataError

TargetKind = Literal["class", "labels", "numbers", "masks"]
_MOST_COUNTED = 1000
"""Classes that may be counted where there are fewer samples: beyond, numbers are likely ids."""
KINDS: tuple[str, ...] = ("class", "labels", "numbers", "masks")


@dataclass(frozen=True)
class TargetValues:
    """The targets of each part, (n, ...), the names of classes, labels or numbers, and notes."""

    names: tuple[str, ...]
    parts: Mapping[str, NDArray[Any]]
    notes: tuple[str, ...] = ()


def as_array(values: Any, what: str) -> Array:
    """Return an array of numbers or text from an array, a tensor, a table's column or a sequence.

    Raises:
        DataError: rows of different lengths, or objects of other kinds.
    """
    if isinstance(values, np.ma.MaskedArray):
        count = int(np.ma.getmaskarray(values).sum())
        if count:
            raise DataError(
                f"Expected {what} without a mask but {count:,} entries are masked. Fill them, "
                "values.filled(...), or leave their samples out."
            )
        values = values.data
    if hasattr(values, "detach"):  # a tensor of torch
        values = values.detach().cpu().to_dense().resolve_conj().resolve_neg()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        array: Array = values.numpy()
        return array
    if hasattr(values, "to_numpy") and not isinstance(values, np.ndarray):
        values = _column_to_numpy(values)
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"Expected {what} to be an array, a tensor or a sequence of equal shapes but got "
            f"{type(values).__name__}: {error}."
        ) from error
    is_list = isinstance(values, list | tuple)
    if is_list and array.dtype.kind == "U" and any(not isinstance(v, str) for v in values):
        array = np.array(values, dtype=object)  # NumPy would make text of numbers beside text
    if array.ndim == 0:
        raise DataError(
            f"Expected {what} to be an array with one entry per sample but got {values!r}."
        )
    return array


def _column_to_numpy(values: Any) -> Any:
    """Return a column of pandas, polars or Arrow as an array; with None where a cell is null, which
    their own conversions refuse, or turn whole numbers into floats for."""
    nulls = getattr(values, "null_count", None)
    if nulls() if callable(nulls) else nulls:  # of polars, of Arrow
        cells = values.to_pylist() if hasattr(values, "to_pylist") else values.to_list()
        return np.array(cells, dtype=object)
    if hasattr(values, "to_pylist"):
        return values.to_numpy(zero_copy_only=False)
    none = getattr(getattr(values, "dtype", None), "na_value", None)
    if type(none).__name__ == "NAType" and values.isna().any():  # of pandas
        return values.to_numpy(dtype=object, na_value=None)
    return values.to_numpy()


def read_target_values(
    parts: Mapping[str, Any],
    sizes: Mapping[str, int],
    kind: TargetKind,
    classes: Sequence[object] | None,
    where: str,
) -> TargetValues:
    """Return the targets of all parts, checked as those of files are.

    parts: name -> targets, None where a part has none. sizes: name -> number of samples. classes:
    names of the classes, labels or numbers in order, where they are known. where: what messages
    name, such as "the arrays".

    Raises:
        ConfigError: an unknown kind, or names that are not distinct.
        DataError: another number of targets than of samples; values that are not of the kind.
    """
    refuse_one_text(classes)
    if kind not in KINDS:
        raise ConfigError(f"Expected `kind` to be one of {', '.join(KINDS)} but got {kind!r}.")
    arrays = {
        name: None if values is None else as_array(values, f"the targets of {where}/{name}")
        for name, values in parts.items()
    }
    for name, array in arrays.items():
        if array is not None and len(array) != sizes[name]:
            raise DataError(
                f"Expected one target for each of the {sizes[name]:,} samples of {where}/{name} "
                f"but got {len(array):,}."
            )
    if classes is None and all(array is None for array in arrays.values()):
        raise DataError(
            f"Expected targets in {where}, or `classes`, the names of what people will answer, "
            "but got neither. Without labels give the names: classes=['cat', 'dog']."
        )
    with_targets = {name: array for name, array in arrays.items() if array is not None}
    names, values, notes = _READERS[kind](with_targets, classes, where)
    shape: tuple[int, ...] = () if kind == "class" else (len(names),)
    for name in parts:
        if name not in values and kind == "masks":
            raise DataError(
                f"Expected masks for {where}/{name}, since annotators draw masks as files: give a "
                "folder of images to the data set mask-folder."
            )
        if name not in values:
            missing: float = np.nan if kind == "numbers" else UNKNOWN
            dtype = np.float32 if kind == "numbers" else np.int64
            values[name] = np.full((sizes[name], *shape), missing, dtype=dtype)
    return TargetValues(names, {name: values[name] for name in parts}, notes)


_Read = tuple[tuple[str, ...], dict[str, NDArray[Any]], tuple[str, ...]]


def _read_classes(arrays: dict[str, Array], classes: Sequence[object] | None, where: str) -> _Read:
    columns = {name: _column(array, f"{where}/{name}") for name, array in arrays.items()}
    if any(array.dtype.kind in "OUSb" for array in columns.values()):
        return _read_names(columns, classes, where)
    for name, array in columns.items():
        if array.dtype.kind not in "iu":
            raise DataError(
                f"Expected classes of {where}/{name} as whole numbers from 0, or as names, but "
                f"got {array.dtype}. For targets that are measured numbers set kind='numbers'; "
                "classes that came as floats become whole numbers by astype(int), with -1 for "
                "those that nobody knows."
            )
    highest = max((int(array.max()) for array in columns.values() if len(array)), default=UNKNOWN)
    if classes is None:
        count = sum(map(len, columns.values()))
        if highest >= max(_MOST_COUNTED, count) or (columns and are_sparse(columns.values())):
            raise DataError(
                f"Expected classes that count from 0 in {where} but the largest of {count:,} "
                f"targets is {highest:,}. Name all classes with `classes`, give names as text "
                "where the numbers are names, or set kind='numbers' where they are measured."
            )
        if columns:
            refuse_wrapped(
                columns.values(), f"classes in {where}", "name all classes with `classes`"
            )
        names = [str(i) for i in range(max(2, highest + 1))]
    else:
        names = class_names((), classes, where)
        if columns:
            refuse_ambiguous_numbers(names, where)
    for name, array in columns.items():
        numbers = array.astype(np.float64)  # of unsigned types too, in which -1 has no place
        wrong = np.flatnonzero((numbers < UNKNOWN) | (numbers >= len(names)))
        if len(wrong):
            raise DataError(
                f"Expected classes between 0 and {len(names) - 1} ({len(names)} classes), or -1 "
                f"where nobody knows, in {where}/{name} but got {int(array[wrong[0]])} at position "
                f"{wrong[0]} ({len(wrong)} such). Name all classes, or repair the targets."
            )
    values: dict[str, NDArray[Any]] = {n: array.astype(np.int64) for n, array in columns.items()}
    return tuple(names), values, _number_notes(values, names, classes is None)


def _column(array: Array, where: str) -> Array:
    """Return values (n,) from values (n,) or (n, 1)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"Expected one class per sample in {where} but got targets of shape {array.shape}. "
            "One-hot rows become classes by argmax(1); for sets of labels set kind='labels', for "
            "several numbers kind='numbers', for masks kind='masks'."
        )
    return array


def _read_names(columns: dict[str, Array], classes: Sequence[object] | None, where: str) -> _Read:
    """Names, truth values, or objects with None for those that nobody knows."""
    import pyarrow as pa

    try:
        chunks = [pa.array([_plain(cell) for cell in array.tolist()]) for array in columns.values()]
        column = pa.chunked_array([chunk.cast(_common(chunks)) for chunk in chunks])
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise DataError(
            f"Expected the classes of {where} to be names, or whole numbers, of one type but: "
            f"{error}."
        ) from error
    if pa.types.is_integer(column.type):
        cells = {
            name: np.array([UNKNOWN if cell is None else cell for cell in array.tolist()])
            for name, array in columns.items()
        }
        return _read_classes(cells, classes, where)
    names, values, notes = read_classes(column, f"classes in {where}", None, "samples", classes)
    ends = np.cumsum([len(array) for array in columns.values()])[:-1]
    return names, dict(zip(columns, np.split(values, ends), strict=True)), notes


def _common(chunks: list[Any]) -> Any:
    """The type of the chunks that are not empty of values."""
    import pyarrow as pa

    kinds = {chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)}
    if len(kinds) > 1:
        raise TypeError(f"got {', '.join(sorted(map(str, kinds)))}")
    return kinds.pop() if kinds else pa.string()


def _plain(cell: Any) -> Any:
    """A cell without NumPy's wrapper; NaN, which pandas writes for none, as None."""
    cell = cell.item() if hasattr(cell, "item") else cell
    return None if isinstance(cell, float) and cell != cell else cell


def refuse_ambiguous_numbers(names: Sequence[str], where: str) -> None:
    """Refuse whole numbers as targets where a class is named by a number not its position.

    Raises:
        DataError: the number 1 may then mean a name or a position.
    """
    for i, name in enumerate(names):
        if name.lstrip("-").isdecimal() and int(name) != i:
            raise DataError(
                f"Expected the classes of {where} by name as text but got numbers, which may mean "
                f"a name or a position: class {name!r} is at position {i}. Convert them to text."
            )


def _number_notes(
    values: Mapping[str, NDArray[Any]], names: Sequence[str], count_words: bool
) -> tuple[str, ...]:
    if not values:
        return ()
    everything = np.concatenate(list(values.values()))
    notes = []
    if count := int((everything == UNKNOWN).sum()):
        notes.append(
            f"{count:,} of {len(everything):,} samples are unlabelled: their target is -1."
        )
    absent = absent_number_notes(everything, len(names), "targets") if count_words else ()
    return (*notes, *absent)


def _read_label_sets(
    arrays: dict[str, Array], classes: Sequence[object] | None, where: str
) -> _Read:
    values: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.ndim != 2 or array.dtype.kind not in "iub":
            raise DataError(
                f"Expected label sets of {where}/{name}, (n, labels) of 0 and 1, but got "
                f"{array.dtype} of shape {array.shape}."
            )
        wrong = ~np.isin(array, (0, 1, UNKNOWN))
        if wrong.any():
            row, column = (int(i[0]) for i in np.nonzero(wrong))
            raise DataError(
                f"Expected 0 or 1, or -1 where nobody knows, in the label sets of {where}/{name} "
                f"but got {array[row, column]} at position {row}, label {column}."
            )
        values[name] = array.astype(np.int64)
    names = _names_of_columns(values, classes, where, "label")
    return names, values, _missing_notes({name: v == UNKNOWN for name, v in values.items()})


def _read_numbers(arrays: dict[str, Array], classes: Sequence[object] | None, where: str) -> _Read:
    values: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.ndim > 2 or array.dtype.kind not in "iufO":
            raise DataError(
                f"Expected numbers of {where}/{name}, (n,) or (n, k), but got {array.dtype} of "
                f"shape {array.shape}."
            )
        try:
            numbers = array.astype(np.float64)  # None becomes NaN
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"Expected numbers of {where}/{name} but: {error}.") from error
        what = f"numbers in {where}/{name}"
        singles = in_single_precision(numbers, what)
        if array.dtype.kind == "O":
            refuse_merged(array.ravel().tolist(), numbers.ravel(), what)
        values[name] = singles[:, None] if singles.ndim == 1 else singles
    names = _names_of_columns(values, classes, where, "value")
    return names, values, _missing_notes({name: np.isnan(v) for name, v in values.items()})


def _names_of_columns(
    values: Mapping[str, NDArray[Any]], classes: Sequence[object] | None, where: str, word: str
) -> tuple[str, ...]:
    widths = {name: array.shape[1] for name, array in values.items()}
    if classes is not None:
        names = tuple(str(name) for name in classes)
        if len(set(names)) != len(names) or not all(names):
            raise ConfigError(f"Expected `classes` to be distinct names but got {list(classes)}.")
        widths["`classes`"] = len(names)
    else:
        width = next(iter(widths.values()))
        names = (word,) if width == 1 else tuple(f"{word}-{i}" for i in range(width))
    if len(set(widths.values())) > 1:
        raise DataError(
            f"Expected targets of one width in {where} but got "
            f"{', '.join(f'{name} {width}' for name, width in widths.items())}."
        )
    return names


def _missing_notes(unknown: Mapping[str, NDArray[np.bool_]]) -> tuple[str, ...]:
    """Sentences on samples without targets. unknown: of each part, (n, k)."""
    if not unknown:
        return ()
    entries = np.concatenate(list(unknown.values()))
    if not (count := int(entries.any(axis=1).sum())):
        return ()
    note = f"{count:,} of {len(entries):,} samples are unlabelled."
    return (note, *known_in_part_notes(entries, "samples"))


def _read_masks(arrays: dict[str, Array], classes: Sequence[object] | None, where: str) -> _Read:
    values: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.ndim != 3 or array.dtype.kind not in "iu":
            raise DataError(
                f"Expected masks of {where}/{name}, whole numbers (n, h, w), but got "
                f"{array.dtype} of shape {array.shape}."
            )
        if len(array) and (array.min() < 0 or array.max() > IGNORE):
            raise DataError(
                f"Expected classes from 0 in the masks of {where}/{name}, and {IGNORE} for pixels "
                f"that count nowhere, but got {int(array.min())} to {int(array.max())}."
            )
        values[name] = array.astype(np.uint8)
    _refuse_two_levels(values, where)
    largest = [int(v[v != IGNORE].max(initial=0)) for v in values.values()]
    highest = max(largest, default=0)
    names = (
        [str(i) for i in range(max(2, highest + 1))]
        if classes is None
        else class_names((), classes, where)
    )
    if highest >= len(names):
        raise DataError(
            f"Expected masks of the {len(names)} classes {names} in {where} but got the class "
            f"{highest}. Name all classes."
        )
    return tuple(names), values, ()


def _refuse_two_levels(values: Mapping[str, NDArray[np.uint8]], where: str) -> None:
    """Refuse masks of 0 and 255 alone, as programs save what is black and white."""
    there = np.zeros(IGNORE + 1, dtype=np.bool_)
    for masks in values.values():
        there[np.unique(masks)] = True
    if np.flatnonzero(there).tolist() == [0, IGNORE]:
        raise DataError(
            f"Expected several classes in the masks of {where} but they hold 0 and {IGNORE} alone, "
            f"and {IGNORE} is for pixels that count nowhere. Where it is a class, make it 1."
        )


_READERS = {
    "class": _read_classes,
    "labels": _read_label_sets,
    "numbers": _read_numbers,
    "masks": _read_masks,
}
