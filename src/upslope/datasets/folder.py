"""A folder of images: by class, or listed in a CSV manifest.

    root/train/<class>/...  and  root/test/<class>/... (or val/; with both, val/ validates)
    root/<class>/...        a stated share of each class is the test set (see `subset.draw`)
    root/<manifest>.csv     columns path, label and, if there is to be no drawing, split
    root/...                images anywhere, none of them labelled: with `classes`, or to score

Ids are paths relative to the root, with `/`. Images without a label, of the folder `unlabelled`
(or `unlabeled`) or with an empty label in the manifest, belong to the pool.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN, ArrayDataset
from upslope.datasets.base import Dataset, Splits
from upslope.datasets.encoded import (
    Decoders,
    EncodedDataset,
    Files,
    Memory,
    ModeOption,
    OnError,
    SizeOption,
    form_of,
    materialise,
)
from upslope.datasets.files import needed_root
from upslope.datasets.subset import draw
from upslope.datasets.unlabelled import ClassNames, NoTestSet, class_names, is_flat, outside_runs
from upslope.errors import ConfigError, DataError
from upslope.images import Mode
from upslope.progress import Observer, silent

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
UNLABELLED = ("unlabelled", "unlabeled")
SPLITS = ("train", "test", "validation", "val", "valid")
ALIASES = {"val": "validation", "valid": "validation"}

Entry = tuple[str, str, str]
"""(id, name of the class or "", split or "")."""

# Lists, as a run records its options in JSON and compares them when it goes on.
Statistic = Annotated[
    list[float] | None,
    Field(description="numbers by channel, of images in 0..1, as in training; else measured"),
]


def load(
    root: Path | None = None,
    *,
    progress: Observer = silent,
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
) -> Splits:
    """A folder of images by class, or with a CSV manifest; streamed when too large to hold."""
    folder = needed_root(root, "folder", "your own images")
    if manifest:
        entries = _manifest(folder, manifest)
    elif classes is not None and is_flat(folder, classes, (*UNLABELLED, *SPLITS)):
        entries = [(id_, "", "") for id_ in outside_runs(folder, _images(folder, folder))]
    else:
        entries = by_class(folder)
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
    )


def to_score(
    root: Path | None = None,
    *,
    progress: Observer = silent,
    manifest: str | None = None,
    mode: Mode | None = "RGB",
    size: int | None = None,
    on_error: str = "raise",
    memory: float = 4.0,
    decoders: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """All images of a folder, at any depth, as a pool without labels: what scoring needs.

    Of a folder with `train/`, the images in there; of a manifest, those of the split train or of
    none. Names of folders are no classes here, so `classes` is empty. Options as for `load`.

    Raises:
        DataError: no image, a corrupt image.
    """
    folder = needed_root(root, "folder", "your own images")
    if manifest:
        ids = [id_ for id_, _, split in _manifest(folder, manifest) if split in ("", "train")]
    else:
        train = folder / "train"
        ids = _images(folder, train if train.is_dir() else folder)
    if not ids:
        raise DataError(
            f"Expected images ({', '.join(sorted(SUFFIXES))}) to score in {folder} but there are "
            "none. Give the folder that holds them, or a manifest that lists them."
        )
    form, shape = form_of(Files(folder, ids), ids, mode, size, on_error)
    labels = np.full(len(ids), UNKNOWN, dtype=np.int64)
    encoded = EncodedDataset(
        folder.name,
        tuple(ids),
        (),
        Files(folder, ids),
        labels,
        form,
        shape,
        decoders=decoders,
    )
    found = materialise(encoded, on_error, memory, progress)
    return normalised(found, mean, std)


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
) -> Splits:
    """The splits of the images listed in `entries`; the options are those of `load`.

    class_list: the classes, in order; without it those of the entries.

    Raises:
        DataError: fewer than two classes, nothing to learn from or to test on, a corrupt image.
    """
    labels = {label for _, label, _ in entries if label}
    classes = tuple(class_names(labels, class_list, folder))
    if len(classes) < 2:
        raise DataError(
            f"Expected images of at least two classes in {folder} but got {list(classes)}. Lay "
            "them out as train/<class>/ and test/<class>/, or <class>/, or name a manifest."
        )
    splits = _splits(entries, test_share, folder, may_lack_test=class_list is not None)
    number = {name: i for i, name in enumerate(classes)} | {"": UNKNOWN}
    pool_ids = [id_ for id_, _, _ in splits["train"]]
    form, shape = form_of(Files(folder, pool_ids), pool_ids, mode, size, on_error)

    def open_split(split: str) -> Dataset | None:
        if not splits[split]:
            return None
        ids = tuple(id_ for id_, _, _ in splits[split])
        labels = np.array([number[label] for _, label, _ in splits[split]], dtype=np.int64)
        encoded = EncodedDataset(
            f"{folder.name}/{split}",
            ids,
            classes,
            Files(folder, ids),
            labels,
            form,
            shape,
            decoders=decoders,
        )
        return normalised(materialise(encoded, on_error, memory, progress), mean, std)

    pool = open_split("train")
    assert pool is not None  # `_splits` has refused an empty pool
    return Splits(pool, open_split("test") or NoTestSet(pool), open_split("validation"))


def by_class(folder: Path) -> list[Entry]:
    """Every image of a folder laid out by class; DataError where the layout cannot be meant."""
    tops = {path.name for path in folder.iterdir() if path.is_dir()}
    if "train" not in tops:
        return list(_class_folders(folder, folder, ""))
    entries: list[Entry] = []
    for top in sorted(tops & {"train", "test", "validation", "val", "valid"}):
        entries += _class_folders(folder, folder / top, ALIASES.get(top, top))
    return entries


def _class_folders(root: Path, folder: Path, split: str) -> Iterable[Entry]:
    loose = next((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), None)
    if loose is not None:
        raise DataError(
            f"Expected images in one folder a class under {folder} but {loose.name} lies beside "
            f"them. Move images without a label to {folder / UNLABELLED[0]}; where none has one, "
            "name the classes: data.classes=[cat,dog]."
        )
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        label = "" if path.name in UNLABELLED else path.name
        found = _images(root, path)
        if not found:
            raise DataError(
                f"Expected images ({', '.join(sorted(SUFFIXES))}) in {path} but there are none. "
                "Remove the folder if it is no class."
            )
        for id_ in found:
            yield id_, label, split


def _images(root: Path, folder: Path) -> list[str]:
    """Paths, relative to `root`, of the images at any depth of `folder` that are not hidden.

    They are ordered as text, so that the order is the same on every system.
    """
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    ids = (p.relative_to(root) for p in found)
    return sorted(id_.as_posix() for id_ in ids if not any(part[0] == "." for part in id_.parts))


def normalised(
    dataset: Dataset, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Dataset:
    """`dataset` with the statistics that were given, if any.

    Raises:
        ConfigError: not one number a channel of both, or numbers that are not of images in 0..1.
    """
    if mean is None and std is None:
        return dataset
    assert isinstance(dataset, ArrayDataset | EncodedDataset)
    mean, std = tuple(mean or ()), tuple(std or ())
    channels = dataset.input_shape[0]
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"Expected `mean` and `std` to have one number for each of the {channels} channels but "
            f"got {list(mean)} and {list(std)}. Give both, or neither to measure them."
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise ConfigError(
            "Expected `mean` and `std` of images scaled to 0..1 but got "
            f"{list(mean)} and {list(std)}. Divide those of images in 0..255 by 255."
        )
    return replace(dataset, mean=mean, std=std)


def _manifest(folder: Path, manifest: str) -> list[Entry]:
    path = folder / manifest
    if not path.is_file():
        raise DataError(f"Expected the manifest {path} but there is no such file.")
    entries: list[Entry] = []
    seen: set[str] = set()
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "path" not in columns or "label" not in columns:
            raise DataError(
                f"Expected the columns path, label and perhaps split in the first line of {path} "
                f"but got {list(columns)}."
            )
        for row in reader:
            id_, label = (row["path"] or "").replace("\\", "/"), row["label"] or ""
            split = (row.get("split") or "").lower()
            split = ALIASES.get(split, split)
            where = f"line {reader.line_num} of {path}"
            if split not in ("", "train", "test", "validation"):
                raise DataError(
                    f"Expected the split of {where} to be train, test or val but got {split!r}."
                )
            if not (folder / id_).is_file():
                raise DataError(f"Expected the image {folder / id_}, {where}, but it is missing.")
            if id_ in seen:
                raise DataError(f"Expected each image once but {id_!r} is listed again, {where}.")
            seen.add(id_)
            entries.append((id_, label, split))
    return entries


def _splits(
    entries: list[Entry], test_share: float, folder: Path, *, may_lack_test: bool
) -> dict[str, list[Entry]]:
    """Entries by split: as stated, or else a stratified share of the labelled ones for the test."""
    labelled = [entry for entry in entries if entry[1]]
    if labelled and not any(split for _, _, split in entries):
        names = np.unique([label for _, label, _ in labelled], return_inverse=True)[1]
        ids = [id_ for id_, _, _ in labelled]
        drawn, _ = draw(ids, names.astype(np.int64), round(test_share * len(ids)), "test")
        test = {ids[i] for i in drawn}
        entries = [(i, label, "test" if i in test else "train") for i, label, _ in entries]
    parts: dict[str, list[Entry]] = {"train": [], "test": [], "validation": []}
    for entry in entries:
        parts[entry[2] or "train"].append(entry)
    if not parts["test"]:  # a lone validation split is what the test is made on
        parts["test"], parts["validation"] = parts["validation"], []
    for part in ("train", "test"):
        if not parts[part] and not (part == "test" and may_lack_test):
            raise DataError(
                f"Expected images to {'learn from' if part == 'train' else 'test on'} in {folder} "
                f"but got none. Add a folder or a split `{part}`, or images to draw it from."
            )
    return parts
