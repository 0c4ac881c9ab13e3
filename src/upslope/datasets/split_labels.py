"""Read the label columns of several splits as labels of the same classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from upslope.datasets.arrays import UNKNOWN, Labels, refuse_wrapped
from upslope.datasets.arrow import is_bytes, is_number, is_text, numbers_of, plain_column, texts_of
from upslope.datasets.class_labels import read_classes
from upslope.datasets.left_out import name_some
from upslope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Names = tuple[str, ...]
_SPARSE = 1000
"""Class numbers without a sample at most, where no names are stated: more are ids or counts."""


def read_split_labels(
    columns: Mapping[str, pa.ChunkedArray],
    names_by_split: Mapping[str, Names | None],
    column: str,
    source: object,
    words: Collection[str] | None = None,
) -> tuple[Names, dict[str, Labels], tuple[str, ...]]:
    """Return (names of the classes, split -> (n,) labels, notes).

    Whole numbers of any type are positions in the names, -1 and empty cells being unlabelled; text
    and truth values are names themselves. Numbers and stated names that are among the words stand
    for no label, and such a name for no class.

    columns: split -> its labels. names_by_split: the names that each split's files state, if any.
    column, source: for messages. words: the option `missing_labels`.

    Raises:
        DataError: splits that state different names; labels that are no classes, or beyond them.
    """
    import pyarrow as pa

    plain = {split: plain_column(one) for split, one in columns.items()}
    what = f"classes in the column `{column}` of {source}"
    names = same_names(names_by_split, source)
    if all(is_number(one.type) or pa.types.is_null(one.type) for one in plain.values()):
        labels = {split: _whole_numbers(one, what) for split, one in plain.items()}
        if words is not None:
            names, labels = _without_missing(names, labels, words)
        notes = tuple(
            f"{int((one == UNKNOWN).sum()):,} of {len(one):,} samples of {split} are unlabelled: "
            f"their label is empty{', -1 or among `data.missing_labels`' if words else ' or -1'}."
            for split, one in labels.items()
            if (one == UNKNOWN).any()
        )
        if names is not None:
            return names, labels, notes
        names = _as_numbers(labels, what)
        return names, labels, (*notes, *_absent_notes(labels, len(names)))
    if not all(_is_name(one.type) for one in plain.values()):
        kinds = ", ".join(sorted({str(one.type) for one in plain.values()}))
        raise DataError(
            f"Expected {what} to be whole numbers or text in every split but got {kinds}. Name "
            "another column with `data.label`."
        )
    texts = [texts_of(one, what) for one in plain.values()]
    all_labels = pa.chunked_array([pa.array(one, pa.large_string()) for one in texts])
    classes, values, notes = read_classes(all_labels, what, words, "samples")
    if names is not None and (absent := sorted(set(classes) - set(names))):
        raise DataError(f"Expected {what} to be among those stated but got {absent[:5]}.")
    if names is not None:
        place = np.array([names.index(name) for name in classes])
        values = np.where(values == UNKNOWN, UNKNOWN, place[values])
    ends = np.cumsum([len(one) for one in texts])[:-1]
    return names or classes, dict(zip(plain, np.split(values, ends), strict=True)), notes


def _absent_notes(labels: Mapping[str, Labels], count: int) -> tuple[str, ...]:
    """Return a sentence on class numbers below the highest that no sample has."""
    there = {*np.unique(np.concatenate(list(labels.values()))).tolist()}
    absent = [str(i) for i in range(count) if i not in there]
    if not 0 < len(absent) < count:
        return ()
    return (
        f"{len(absent)} of {count} classes have no sample: {name_some(absent)}. Labels count from "
        "0, and no names of classes are stated.",
    )


def _is_name(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        is_text(kind) or is_bytes(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    )


def same_names(names_by_split: Mapping[str, Names | None], source: object) -> Names | None:
    """Return the names that splits or files state; DataError where two state different ones."""
    names_given = {split: names for split, names in names_by_split.items() if names is not None}
    if len(set(names_given.values())) > 1:
        (one, first), (other, second) = list(names_given.items())[:2]
        differing = next(
            (a, b) for a, b in zip((*first, ""), (*second, ""), strict=False) if a != b
        )
        raise DataError(
            f"Expected the same classes in the same order everywhere in {source} but {one} "
            f"states {len(first)} and {other} {len(second)}, first differing in {differing[0]!r} "
            f"and {differing[1]!r}. Write both with the same names."
        )
    return next(iter(names_given.values()), None)


def _whole_numbers(column: pa.ChunkedArray, what: str) -> Labels:
    """Return (n,) int64, `UNKNOWN` where a cell is empty."""
    import pyarrow as pa

    if pa.types.is_null(column.type):
        return np.full(len(column), UNKNOWN, dtype=np.int64)
    if pa.types.is_integer(column.type):
        try:
            whole: Labels = column.cast(pa.int64()).fill_null(UNKNOWN).to_numpy()
        except pa.ArrowInvalid as error:
            raise DataError(f"Expected {what} to fit int64 but: {error}.") from error
        return whole
    values = numbers_of(column)
    numbers = values[~np.isnan(values)]
    fractions = numbers[numbers != np.floor(numbers)]
    if len(fractions) or np.isinf(values).any():
        wrong = fractions[0] if len(fractions) else np.inf
        raise DataError(f"Expected {what} to be whole numbers or text but got {wrong:g}.")
    return np.where(np.isnan(values), UNKNOWN, values).astype(np.int64)


def _without_missing(
    names: Names | None, labels: Mapping[str, Labels], words: Collection[str]
) -> tuple[Names | None, dict[str, Labels]]:
    """Return the names that are not among the words, and labels by them, `UNKNOWN` where they or
    their names are.
    """
    all_names = names or ()
    class_places = [i for i, name in enumerate(all_names) if name not in words]
    new_number = {old: new for new, old in enumerate(class_places)}

    def number(label: int) -> int:
        if 0 <= label < len(all_names):
            return new_number.get(label, UNKNOWN)
        return UNKNOWN if str(label) in words else label

    return None if names is None else tuple(all_names[i] for i in class_places), {
        split: np.array([number(label) for label in one.tolist()], dtype=np.int64)
        for split, one in labels.items()
    }


def _as_numbers(labels: Mapping[str, Labels], what: str) -> Names:
    """Return names "0", "1", ... up to the highest label.

    Raises:
        DataError: so high a label, for so few classes, that it is no class.
    """
    highest = max(int(one.max(initial=1)) for one in labels.values())
    distinct = len(np.unique(np.concatenate(list(labels.values()))))
    if highest + 1 - distinct > _SPARSE:
        raise DataError(
            f"Expected {what} to be numbered from 0 but got {highest} as the highest of {distinct}."
        )
    refuse_wrapped(labels.values(), what, "state the names of all, or write them as text")
    return tuple(str(i) for i in range(highest + 1))
