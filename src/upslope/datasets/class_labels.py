"""Read a column of classes: names as they are written, or whole numbers of any type."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from upslope.datasets.arrays import UNKNOWN, Labels
from upslope.datasets.arrow import is_number, plain_column, texts_of, unused_categories
from upslope.datasets.left_out import name_some
from upslope.datasets.missing import MISSING_WORDS, is_missing, missing_notes
from upslope.datasets.notations import is_date
from upslope.datasets.unlabelled import class_names
from upslope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_FEWEST = 10
"""Labelled samples from which a class of its own for each is refused."""


def read_classes(
    column: pa.ChunkedArray,
    what: str,
    words: Collection[str] | None,
    samples: str = "rows",
    class_list: Sequence[object] | None = None,
) -> tuple[tuple[str, ...], Labels, tuple[str, ...]]:
    """Return (names of the classes in order, (n,) labels, notes) of a column of classes.

    Whole numbers are ordered by size, other names as text. what: "classes in the column ..." for
    messages. words: the option `missing_labels`. samples: what has the labels, in the plural.
    class_list: the option `classes`, all names in order; a word among them stands for its class.

    Raises:
        ConfigError: names given that are no names.
        DataError: cells that are no classes, or not among those given; fewer than two; one of its
            own for each sample; two spellings of one number.
    """
    classes_are_stated = class_list is not None and words is None
    if class_list is not None and words is None:
        words = [word for word in MISSING_WORDS if word not in class_list]
    column, categories = plain_column(column), column
    cells = texts_of(column, what)
    without_cells = [c for c in map(str, unused_categories(categories)) if not is_missing(c, words)]
    notes = list(missing_notes(cells, words, samples, classes_are_stated=classes_are_stated))
    if is_number(column.type) and "int" not in str(column.type):
        notes.append(f"Labels of type {column.type} are whole numbers, and taken as classes.")
    labels = [cell for cell in cells if cell is not None and not is_missing(cell, words)]
    names = (
        ordered_names(labels, what)
        if class_list is None
        else tuple(class_names(labels, class_list, what))
    )
    if len(names) < 2:
        raise DataError(
            f"Expected at least 2 {what} but got {list(names)}"
            + (f", since {notes[0]}" if notes else ".")
            + " Where nothing is labelled yet, name the classes: data.classes=[cat,dog]."
        )
    if class_list is None and len(names) == len(labels) and len(names) >= _FEWEST:
        raise DataError(
            f"Expected {what} but each of the {len(labels):,} labels is there once, as "
            f"{names[0]!r}: ids or measured numbers. Name another column, or for a table set "
            "`data.kind` to numbers."
        )
    if without_cells and class_list is None:
        notes.append(
            f"No sample has {name_some(without_cells)}, which the column states as "
            "well: no class. Name all with `data.classes` where it is one."
        )
    number = {name: i for i, name in enumerate(names)}
    values = [
        UNKNOWN if cell is None or is_missing(cell, words) else number[cell] for cell in cells
    ]
    if all(is_date(name) for name in names):
        notes.append(f"All classes are dates or times, as {names[0]!r}: is this their column?")
    return names, np.array(values, dtype=np.int64), tuple(notes)


def ordered_names(cells: Collection[str], what: str) -> tuple[str, ...]:
    """Return the distinct names: by size where all are numbers, else as text.

    Raises:
        DataError: two spellings of one number, such as 1 and 01.
    """
    names = sorted(set(cells))
    if not all(_NUMBER.fullmatch(name) for name in names):
        return tuple(names)
    sizes: dict[Fraction, str] = {}
    for name in names:
        other = sizes.setdefault(Fraction(name), name)
        if other != name:
            raise DataError(
                f"Expected one spelling of each number among the {what} but got {other!r} and "
                f"{name!r}. Write them alike."
            )
    return tuple(sizes[size] for size in sorted(sizes))
