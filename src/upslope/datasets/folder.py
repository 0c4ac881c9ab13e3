"""A folder of images: by class, or listed in a CSV manifest.

    root/train/<class>/...  and  root/test/<class>/... (or val/; with both, val/ validates)
    root/<class>/...        a stated share of each class is the test set (see `subset.draw`)
    root/<manifest>.csv     columns path, label and, if there is to be no drawing, split
    root/...                images anywhere, none of them labelled: with `classes`, or to score

Ids are paths relative to the root, with `/`. Images without a label, of the folder `unlabelled`
(or `unlabeled`) or with an empty label in the manifest, belong to the pool. `layout` has the rules
by which folders are told apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN, ArrayDataset
from upslope.datasets.base import Dataset
from upslope.datasets.decoding import EncodingOption
from upslope.datasets.encoded import (
    Decoders,
    EncodedDataset,
    Files,
    Memory,
    ModeOption,
    OnError,
    SizeOption,
    materialise,
)
from upslope.datasets.image_duplicates import Duplicates, DuplicatesOption, copy_notes
from upslope.datasets.image_form import White, form_of
from upslope.datasets.image_splits import class_notes, divide
from upslope.datasets.image_survey import survey_notes
from upslope.datasets.layout import (
    Entry,
    Layout,
    LayoutOption,
    by_class,
    images_in,
    no_images,
    train_folders,
)
from upslope.datasets.left_out import LeftOut
from upslope.datasets.manifest import read_manifest
from upslope.datasets.missing import MissingLabels, class_folder_notes
from upslope.datasets.paths import needed_root
from upslope.datasets.splits import Splits
from upslope.datasets.statistics import check_stated
from upslope.datasets.unlabelled import (
    ClassNames,
    NoTestSet,
    class_names,
    is_flat,
    misspelt_class_notes,
)
from upslope.errors import ConfigError, DataError
from upslope.images import OPTIONS, Mode
from upslope.progress import Observer, no_progress

# Lists, as a run records its options in JSON and compares them when it goes on.
Statistic = Annotated[
    list[float] | None,
    Field(description="numbers by channel, of images in 0..1, as in training; else measured"),
]


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    classes: ClassNames = None,
    manifest: Annotated[
        str | None, Field(description="CSV file in the folder: path, label and perhaps split")
    ] = None,
    test_share: Annotated[
        float, Field(gt=0, lt=1, description="share of each class to test on, if files state none")
    ] = 0.2,
    mode: ModeOption = "RGB",
    size: SizeOption = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    decoders: Decoders = 0,
    mean: Statistic = None,
    std: Statistic = None,
    white: White = None,
    layout: LayoutOption = "auto",
    duplicates: DuplicatesOption = "auto",
    missing_labels: MissingLabels = None,
    encoding: EncodingOption = None,
) -> Splits:
    """A folder of images by class, or with a CSV manifest; streamed when too large to hold."""
    folder = needed_root(root, "folder", "your own images")
    if manifest and layout != "auto":
        raise ConfigError(
            "data set 'folder': Expected `data.layout` to be auto with a manifest but got "
            f"{layout!r}: folders are not looked at."
        )
    if manifest:
        entries, left_out_notes, others = read_manifest(folder, manifest, missing_labels, encoding)
        notes = (*left_out_notes, *others)
    else:
        left_out = LeftOut()
        misspelt_notes: tuple[str, ...] = ()
        if classes is not None and layout == "auto" and is_flat(folder, classes):
            entries = [(id_, "", "") for id_ in images_in(folder, folder, left_out)]
            misspelt_notes = misspelt_class_notes(folder, classes)
        else:
            entries = by_class(folder, layout, left_out, needs_test=classes is None)
        if not entries:
            raise no_images(folder, left_out)
        names = dict.fromkeys(name for _, name, _ in entries if name)
        notes = (*left_out.notes(), *misspelt_notes, *class_folder_notes([*names]))
    return open_entries(
        folder,
        entries,
        test_share,
        class_list=classes,
        mode=mode,
        size=size,
        on_error=on_error,
        memory=memory,
        decoders=decoders,
        progress=progress,
        mean=mean,
        std=std,
        white=white,
        notes=notes,
        duplicates=duplicates,
    )


def to_score(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    manifest: str | None = None,
    mode: Mode | None = "RGB",
    size: int | None = None,
    on_error: str = "raise",
    memory: float = 4.0,
    decoders: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white: int | None = None,
    layout: Layout = "auto",
    missing_labels: list[str] | None = None,
    encoding: str | None = None,
) -> Dataset:
    """All images of a folder, at any depth, as a pool without labels: what scoring needs.

    Of a folder with `train/`, the images in there and in `unlabelled/`; of a manifest, those of the
    split train or of none. Names of folders are no classes here, so `classes` is empty. Options as
    for `load`, which has more of them. What is left out of a folder is told in warnings.

    Raises:
        DataError: no image, a corrupt image.
    """
    folder = needed_root(root, "folder", "your own images")
    if manifest:
        entries, notes, _ = read_manifest(folder, manifest, missing_labels, encoding)
        ids = [id_ for id_, _, split in entries if split in ("", "train")]
    else:
        left_out = LeftOut()
        ids = [
            id_
            for place in train_folders(folder, layout)
            for id_ in images_in(folder, place, left_out)
        ]
        if not ids:
            raise no_images(folder, left_out, " to score")
        notes = left_out.notes()
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if not ids:
        raise DataError(
            f"Expected images to score in the manifest {manifest} of {folder} but all that it "
            "lists belong to other splits than train."
        )
    form, shape = form_of(Files(folder, ids), ids, mode, size, on_error, white)
    labels = np.full(len(ids), UNKNOWN, dtype=np.int64)
    images = EncodedDataset(
        folder.name,
        tuple(ids),
        (),
        Files(folder, ids),
        labels,
        form,
        shape,
        decoders=decoders,
        place=str(folder),
    )
    dataset = materialise(images, on_error, memory, progress)
    return normalise_splits(dataset, mean, std)


def open_entries(
    folder: Path,
    entries: list[Entry],
    test_share: float,
    *,
    class_list: Sequence[object] | None = None,
    mode: Mode | None,
    size: int | None,
    on_error: str,
    memory: float,
    decoders: int = 0,
    progress: Observer,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white: int | None = None,
    notes: tuple[str, ...] = (),
    duplicates: Duplicates = "off",
    options: frozenset[str] = OPTIONS,
) -> Splits:
    """Return the splits of the images listed in `entries`; the options are those of `load`.

    notes: what the listing left out. duplicates: as for `copy_notes`.
    class_list: the classes, in order; without it those of the entries. options: as of
    `images.Form`.

    Raises:
        DataError: fewer than two classes, nothing to learn from or to test on, a corrupt image.
    """
    classes = _classes_of(entries, class_list, folder)
    splits = divide(entries, test_share, folder, may_lack_test=class_list is not None)
    notes += class_notes(splits)
    number = {name: i for i, name in enumerate(classes)} | {"": UNKNOWN}
    pool_ids = [id_ for id_, _, _ in splits["train"]]
    form, shape = form_of(Files(folder, pool_ids), pool_ids, mode, size, on_error, white, options)

    def open_split(split: str) -> Dataset | None:
        if not splits[split]:
            return None
        ids = tuple(id_ for id_, _, _ in splits[split])
        labels = np.array([number[label] for _, label, _ in splits[split]], dtype=np.int64)
        dataset = EncodedDataset(
            f"{folder.name}/{split}",
            ids,
            classes,
            Files(folder, ids),
            labels,
            form,
            shape,
            decoders=decoders,
            place=f"{folder} ({split})",
        )
        return normalise_splits(materialise(dataset, on_error, memory, progress), mean, std)

    pool, test = open_split("train"), open_split("test")
    assert pool is not None  # `divide` has refused an empty pool
    validation = open_split("validation")
    parts = {"pool": pool, "test set": test, "validation set": validation}
    datasets = {title: part for title, part in parts.items() if part is not None}
    read_ids = [id_ for part in datasets.values() for id_ in part.ids]
    notes += survey_notes(Files(folder, read_ids), read_ids, form, on_error)
    if duplicates != "off":
        files = {part: [folder / id_ for id_ in data.ids] for part, data in datasets.items()}
        notes += copy_notes(datasets, files, duplicates, progress)
    return Splits(pool, NoTestSet(pool) if test is None else test, validation, notes)


def normalise_splits(
    dataset: Dataset, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Dataset:
    """Return `dataset` with the statistics that were given, if any.

    Raises:
        ConfigError: not one number per channel of both, or numbers that are not of images in 0..1.
    """
    if mean is None and std is None:
        return dataset
    assert isinstance(dataset, ArrayDataset | EncodedDataset)
    stated_mean, stated_std = check_stated(mean, std, dataset.input_shape[0])
    return replace(dataset, mean=stated_mean, std=stated_std)


def _classes_of(
    entries: Sequence[Entry], class_list: Sequence[object] | None, folder: Path
) -> tuple[str, ...]:
    """Return the classes, two or more, in order: those given, or those of the entries."""
    labels = {label for _, label, _ in entries if label}
    classes = tuple(class_names(labels, class_list, folder))
    if len(classes) < 2:
        inside = folder / classes[0] if classes else folder
        holds_folders = inside.is_dir() and any(path.is_dir() for path in inside.iterdir())
        hint = (
            f" If its classes are the folders in {inside}, give that as the root."
            if inside != folder and holds_folders
            else ""
        )
        raise DataError(
            f"Expected images of at least two classes in {folder} but got {list(classes)}. Lay "
            f"them out as train/<class>/ and test/<class>/, or <class>/, or name a manifest.{hint}"
        )
    _alike(classes, folder)
    return classes


def _alike(classes: Sequence[str], folder: Path) -> None:
    """Refuse names of classes that differ in white space alone."""
    bare: dict[str, str] = {}
    for name in classes:
        other = bare.setdefault(" ".join(name.split()), name)
        if other != name:
            raise DataError(
                f"Expected names of classes to differ by more than spaces in {folder} but got "
                f"{other!r} and {name!r}. Make them one, or rename one."
            )
