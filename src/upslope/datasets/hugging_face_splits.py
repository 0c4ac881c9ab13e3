"""Data sets of Hugging Face that a program holds: a `DatasetDict`, or one `Dataset`.

    splits = Splits.from_hugging_face(load_dataset("owner/name"))
    splits = Splits.from_hugging_face(dataset_dict, text="sentence")

Images are read as the data set `hf` reads them, texts as the data set `text`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.datasets.argument_names import as_arguments, options_as_arguments
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.frames import TABLE
from upslope.datasets.hugging_face import (
    TESTS,
    column_of,
    from_splits,
    label_column,
    notes_on_other_splits,
    refuse_unlabelled_test,
    without_format,
)
from upslope.datasets.missing import is_missing
from upslope.datasets.rows import rows_of
from upslope.datasets.splits import Splits
from upslope.datasets.text import from_rows
from upslope.errors import ConfigError, DataError
from upslope.images import Mode
from upslope.progress import Observer, no_progress

if TYPE_CHECKING:
    import pyarrow as pa

_ARGUMENT_NAMES = {"target": "label"}
"""Options of the data set `text` whose arguments are called as those of images are."""


def from_hugging_face(
    data: Any,
    *,
    train: str = "train",
    test: str | None = None,
    image: str | None = None,
    label: str | None = None,
    missing_labels: Sequence[str] | None = None,
    text: str | None = None,
    tokenizer: str = "words",
    length: int = 128,
    mode: Mode | None = None,
    size: int | None = None,
    memory: float = 4.0,
    white: int | None = None,
    test_share: float | None = None,
    progress: Observer = no_progress,
) -> Splits:
    """Make the splits of a data set of Hugging Face; see `Splits.from_hugging_face`."""
    with options_as_arguments(_ARGUMENT_NAMES):
        splits = _splits(data, train, test_share, label, text, missing_labels)
        if text is None:
            splits_read = from_splits(
                splits, "the data set", train, test, image, label, missing_labels, mode, size,
                "raise", memory, 0, white, progress,
            )  # fmt: skip
        else:
            splits_read = _texts(
                splits, train, test, text, label, missing_labels, tokenizer, length, test_share
            )
    notes = tuple(as_arguments(note, _ARGUMENT_NAMES) for note in splits_read.notes)
    return Splits(splits_read.pool, splits_read.test, splits_read.validation, notes)


def _splits(
    data: Any,
    train: str,
    test_share: float | None,
    label: str | None,
    text: str | None,
    missing_labels: Collection[str] | None,
) -> dict[str, Any]:
    """Return splits by name, without formats, one of them set apart where there is no test set and
    a share is asked.
    """
    splits = dict(data) if isinstance(data, Mapping) else {train: data}
    for name, rows in splits.items():
        if not hasattr(rows, "features") or not hasattr(rows, "select"):
            raise ConfigError(
                f"Expected {name} to be a Dataset of Hugging Face but got {type(rows).__name__}."
            )
        if not hasattr(rows, "__getitem__"):
            raise ConfigError(
                f"Expected {name} to give samples by position but it is a stream. Load it without "
                "streaming=True."
            )
    splits = {name: without_format(rows, name) for name, rows in splits.items()}
    if test_share is not None and train in splits:
        if any(name in splits for name in TESTS):
            raise ConfigError(
                "Expected `test_share` where there is no test set but got it beside "
                f"{', '.join(name for name in TESTS if name in splits)}."
            )
        # By position, evenly: the draw must not depend on a seed.
        rows = splits[train]
        column = (
            label_column(rows.features, label, train)
            if text is None
            else text_label(rows, text, label)
        )
        cells = column_of(rows, column).to_pylist()
        labelled = np.flatnonzero([not _is_empty(cell, missing_labels) for cell in cells])
        count = len(labelled)
        places = np.linspace(0, count - 1, round(test_share * count)).astype(int)
        test_rows = labelled[np.unique(places)].tolist() if count else []
        rest = np.setdiff1d(np.arange(len(rows)), test_rows).tolist()
        if not test_rows or not rest:
            raise DataError(
                f"Expected samples to learn from and to test on but a test_share of {test_share} "
                f"of {count} labelled samples leaves {len(rest)} and {len(test_rows)}."
            )
        splits |= {"test": splits[train].select(test_rows), train: splits[train].select(rest)}
    return splits


def _is_empty(cell: Any, words: Collection[str] | None) -> bool:
    """Whether a cell is no label: nothing, -1, NaN, or a word for missing."""
    if isinstance(cell, str):
        return is_missing(cell, words)
    return cell is None or cell == UNKNOWN or cell != cell


def _texts(
    splits: Mapping[str, Any],
    train: str,
    test: str | None,
    text: str,
    label: str | None,
    missing_labels: Sequence[str] | None,
    tokenizer: str,
    length: int,
    test_share: float | None,
) -> Splits:
    test = test or next((name for name in TESTS if name in splits), None)
    if train not in splits or (test is not None and test not in splits):
        raise DataError(
            f"Expected the splits {train} and {test} in the data set but it has "
            f"{', '.join(splits)}. Name them with `train` and `test`."
        )
    if test is not None:
        of_test = column_of(splits[test], text_label(splits[test], text, label)).to_pylist()
        unknown = np.array([_is_empty(cell, missing_labels) for cell in of_test])
        refuse_unlabelled_test(unknown, f"the data set/{test}", "data.test")
    tables = {name: _arrow(splits[name], text, label) for name in (train, test) if name}
    target = next(iter(tables.values()))[1]
    names = tables[train][2]
    rows = rows_of([table for table, *_ in tables.values()], TABLE, None)
    read = from_rows(
        rows, tokenizer, text, target, names, missing_labels, length, test_share or 0.2
    )
    notes = (*read.notes, *notes_on_other_splits(splits, tables))
    return Splits(read.pool, read.test, read.validation, notes)


def text_label(rows: Any, text: str, label: str | None) -> str:
    """Return the column of labels of texts: the one given, or the one that is likely.

    rows: a data set of Hugging Face. text: the column of the texts.

    Raises:
        ConfigError: a column is not there, or none is likely to hold labels.
    """
    features = rows.features
    classes = [c for c, f in features.items() if type(f).__name__ == "ClassLabel"]
    usual = [c for c in ("label", "labels", "target") if c in features]
    column = label or next(iter(classes if len(classes) == 1 else usual), None)
    if text not in features or column is None or column not in features:
        kinds = ", ".join(f"{c} ({getattr(f, 'dtype', f)})" for c, f in features.items())
        raise ConfigError(
            f"Expected `text` and `label` to name columns of the data set but got {text!r} and "
            f"{label!r}; it has {kinds}."
        )
    return column


def _arrow(rows: Any, text: str, label: str | None) -> tuple[pa.Table, str, Sequence[str] | None]:
    """Return (text and label as a table of Arrow, the label's column, names of the classes)."""
    import pyarrow as pa

    features, column = rows.features, text_label(rows, text, label)
    table = rows.select_columns([text, column]).with_format("arrow")[:]
    names = getattr(features[column], "names", None)
    if names is not None or pa.types.is_integer(table.schema.field(column).type):
        cells = table.column(column).to_pylist()
        label_cells = [
            None if cell in (None, UNKNOWN) else str(cell) if names is None else names[cell]
            for cell in cells
        ]
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(label_cells, pa.string()))
    return table, column, None if names is None else [str(name) for name in names]
