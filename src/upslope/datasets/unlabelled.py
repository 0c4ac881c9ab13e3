"""Data sets that nobody has labelled yet: classes by name, and no test set.

Without labels, files do not say which classes there are. The option `classes` does; then a pool
may have no label at all, and where none can be set apart to test on, the test set is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from upslope.counts import format_count
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.base import Dataset, HasPairs
from upslope.datasets.folder_names import split_of
from upslope.datasets.layout import UNLABELLED
from upslope.datasets.name_lists import split_names
from upslope.datasets.rows import read_rows
from upslope.datasets.similar_names import bare_name
from upslope.datasets.subset import Subset, knows_labels, labels_of, origin
from upslope.errors import ConfigError, DataError

ClassNames = Annotated[
    # Others than text are refused with a word on quotes.
    list[str | int | float | bool | None] | None,
    BeforeValidator(
        lambda value: split_names(value, "data.classes") if isinstance(value, str) else value
    ),
    Field(
        title="a list of names, or nothing",
        description="names of the classes, where labels do not name them all: [cat, dog]",
    ),
]

USUAL = ("label", "class", "target")
"""Columns of targets, where no option names others."""

_READING = ("encoding", "delimiter", "decimal")  # options of how text is read, where there are any


class NoTestSet(Subset):
    """An empty test set: a reader says that nothing is labelled to test on."""

    def __init__(self, pool: Dataset) -> None:
        super().__init__(pool, ())


def refuse_one_text(class_list: object) -> None:
    """Refuse a text in place of a list of names, which would be taken letter by letter.

    Raises:
        ConfigError: `class_list` is a text.
    """
    if isinstance(class_list, str):
        names = [name.strip() for name in class_list.split(",")]
        raise ConfigError(
            f"Expected `data.classes` to be a list of names but got {class_list!r}. Write {names}."
        )


def class_names(
    labels: Iterable[str], class_list: Sequence[object] | None, where: object
) -> list[str]:
    """Return the classes in order: those given, or those of the labels, sorted.

    where: the files that messages name.

    Raises:
        ConfigError: names given that are empty or repeated, or fewer than two.
        DataError: labels that are not among the names given.
    """
    label_names = set(labels)
    refuse_one_text(class_list)
    if class_list is None:
        return sorted(label_names)
    if others := [name for name in class_list if not isinstance(name, str)]:
        raise ConfigError(
            f"Expected `data.classes` to be names as text but got {others}: without quotes YAML "
            "reads numbers, yes and no as truth values, and null as nothing. Quote them, and the "
            'whole for the shell: -s \'data.classes=["0", "yes", "null"]\'.'
        )
    names = [str(name).strip() for name in class_list]
    if len(names) < 2 or not all(names) or len(set(names)) != len(names):
        raise ConfigError(
            f"Expected `data.classes` to be two or more distinct names but got {list(class_list)}."
        )
    if strangers := sorted(label_names - set(names)):
        raise DataError(
            f"Expected labels among the `data.classes` {names} in {where} but got {strangers[:5]}. "
            "Add them to `data.classes`, or correct the labels."
        )
    return names


def is_flat(folder: Path, classes: Sequence[object]) -> bool:
    """Tell whether no folder in `folder` names a class, a split, or what is unlabelled.

    Then its images have no label, however they lie.
    """
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return not any(n in classes or split_of(n) or n.lower() in UNLABELLED for n in names)


def misspelt_class_notes(folder: Path, classes: Sequence[object]) -> tuple[str, ...]:
    """Return a sentence for each folder that is named as a class but for how it is written.

    folder: flat (`is_flat`), so that the images of such folders have no label.
    """
    bare_classes = {bare_name(str(name)): str(name) for name in classes}
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return tuple(
        f"Images in the folder {name!r} have no label, since it is written otherwise than the "
        f"class {bare_classes[bare_name(name)]!r} (capitals, spaces, accented letters in one "
        "code point or in two, or letters of another script). Rename it where that class is meant."
        for name in names
        if bare_name(name) in bare_classes
    )


def sample_file(dataset: Dataset, index: int, root: Path | None) -> Path | None:
    """Return the file of a sample, None where it has none of its own.

    root: where ids may be paths from.

    dataset, index: the sample.
    """
    source, place = origin(dataset, index)
    if isinstance(source, HasPairs):
        image: Path = source.pairs[place].image
        return image
    path = root / dataset.ids[index] if root is not None else None
    return path if path is not None and path.is_file() else None


def wants_people(dataset: Dataset) -> bool:
    """Return whether some sample has no label, so that people must be asked for it.

    dataset: the pool.
    """
    return bool(unlabelled(dataset))


def check_labelled(pool: Dataset) -> None:
    """Raise ConfigError where samples have no label, which a comparison cannot ask for.

    pool: the samples to learn from.
    """
    if without := unlabelled(pool):
        verb = "has" if len(without) == 1 else "have"
        of_words = (
            " Where a word such as NA is a class of yours, set `data.missing_labels` to the words "
            "that stand for no label, [] for none."
        )
        if isinstance(origin(pool, without[0])[0], HasPairs):  # no word stands for a mask
            of_words = ""
        raise ConfigError(
            f"Expected each of the {format_count(len(pool), 'sample')} of the pool to have a "
            f"label, as a comparison asks nobody, but {len(without):,} {verb} none, first "
            f"{pool.ids[without[0]]!r}. Take `upslope run`, which asks people for labels (in "
            f"Python `Experiment`); or label these samples, or leave them out.{of_words}"
        )


def unlabelled(dataset: Dataset) -> list[int]:
    """Return the positions of samples whose label the data set could hold and does not."""
    if not knows_labels(dataset):
        return []
    positions: list[int] = np.flatnonzero(labels_of(dataset) == UNKNOWN).tolist()
    return positions


def row_contents(root: Path, options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return what people need to see of each row of a table: id -> its cells by column.

    root: the file or folder. options: those of the reader that read it. The ids, the split and the
    targets are left out.

    Raises:
        DataError: as the reader does.
    """
    reading = {key: options[key] for key in _READING if key in options}
    rows = read_rows(root, options.get("id"), **reading)
    target = options.get("target")
    hidden = rows.used | set(USUAL if target is None else split_names(target, "data.target"))
    names = [name for name in rows.table.column_names if name not in hidden]
    columns = [rows.table.column(name).to_pylist() for name in names]
    cells = zip(*columns, strict=True) if columns else ((),) * len(rows.ids)
    return {
        id_: {n: "" if cell is None else str(cell) for n, cell in zip(names, row, strict=True)}
        for id_, row in zip(rows.ids, cells, strict=True)
    }
