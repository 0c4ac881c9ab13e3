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
    takes_classes: bool = True,
) -> tuple[tuple[str, ...], Labels, tuple[str, ...]]:
    """Return (names of the classes in order, (n,) labels, notes) of a column of classes.

    Whole numbers are ordered by size, other names as text. what: "classes in the column ..." for
    messages. words: the option `missing_labels`. samples: what has the labels, in the plural.
    class_list: the option `classes`, all names in order; a word among them stands for its class.
    takes_classes: the reader has that option, which messages may advise.

    Raises:
        ConfigError: names given that are no names.
        DataError: cells that are no classes, or not among those given; fewer than two; one of its
            own for each sample; two spellings of one number.
    """
    is_stated = class_list is not None and words is None
    if class_list is not None and words is None:
        words = [word for word in MISSING_WORDS if word not in class_list]
    plain = plain_column(column)
    cells = texts_of(plain, what)
    notes = list(missing_notes(cells, words, samples, classes_are_stated=is_stated))
    if is_number(plain.type) and "int" not in str(plain.type):
        notes.append(f"Labels of type {plain.type} are whole numbers, and taken as classes.")
    labels = [cell for cell in cells if cell is not None and not is_missing(cell, words)]
    names = _names_of(labels, class_list, what, notes, takes_classes)
    if class_list is None:
        _refuse_ids(names, labels, what)
        notes += _unused_notes(column, words, takes_classes)
    if all(is_date(name) for name in names):
        notes.append(f"All classes are dates or times, as {names[0]!r}: is this their column?")
    return names, _class_numbers(cells, names, words), tuple(notes)


def _names_of(
    labels: Sequence[str],
    class_list: Sequence[object] | None,
    what: str,
    notes: Sequence[str],
    takes_classes: bool,
) -> tuple[str, ...]:
    """Return the names of the classes, two or more: those given, or those of the labels.

    notes: on the labels, of which the first tells why there are fewer.
    """
    if class_list is None:
        names = ordered_names(labels, what)
    else:
        names = tuple(class_names(labels, class_list, what))
    if len(names) < 2:
        raise DataError(
            f"Expected at least 2 {what} but got {list(names)}"
            + (f", since {notes[0]}" if notes else ".")
            + " Where nothing is labelled yet, name the classes: data.classes=[cat,dog]."
            * takes_classes
        )
    return names


def _refuse_ids(names: Sequence[str], labels: Sequence[str], what: str) -> None:
    """Refuse a class of its own for each of many labels."""
    if len(names) == len(labels) and len(names) >= _FEWEST:
        raise DataError(
            f"Expected {what} but each of the {len(labels):,} labels is there once, as "
            f"{names[0]!r}: ids or measured numbers. Name another column, or for a table set "
            "`data.kind` to numbers."
        )


def _unused_notes(
    column: pa.ChunkedArray, words: Collection[str] | None, takes_classes: bool
) -> tuple[str, ...]:
    """Return a sentence on categories that the column states and no sample has."""
    names = [name for name in map(str, unused_categories(column)) if not is_missing(name, words)]
    if not names:
        return ()
    advice = " Name all with `data.classes` where it is one." * takes_classes
    return (
        f"No sample has {name_some(names)}, which the column states as well: no class.{advice}",
    )


def _class_numbers(
    cells: Sequence[str | None], names: Sequence[str], words: Collection[str] | None
) -> Labels:
    """Return (n,): the position of each cell's name; `UNKNOWN` where the cell stands for none."""
    number = {name: i for i, name in enumerate(names)}
    values = [
        UNKNOWN if cell is None or is_missing(cell, words) else number[cell] for cell in cells
    ]
    return np.array(values, dtype=np.int64)


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
