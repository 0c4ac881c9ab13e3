"""ImageNet (ILSVRC2012): photographs by class, as the archives of image-net.org unpack.

    train/<wnid>/*.JPEG
    val/<wnid>/*.JPEG, or val/ILSVRC2012_val_*.JPEG with the development kit beside it:
    ILSVRC2012_devkit_t12/data/meta.mat and ILSVRC2012_validation_ground_truth.txt

J. Deng et al., ImageNet: A Large-Scale Hierarchical Image Database, CVPR 2009. The test set is
the published validation split: the labels of the published test split are held back. Classes are
in the order of their wnids, which is that of published weights; the development kit adds words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from upslope.datasets.decoding import read_utf8
from upslope.datasets.encoded import Decoders, Memory, OnError, SizeOption
from upslope.datasets.folder import open_entries
from upslope.datasets.layout import Entry
from upslope.datasets.matlab import read_matlab
from upslope.datasets.paths import needed_root
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.images import OPTIONS
from upslope.progress import Observer, no_progress
from upslope.reading import reporting_damage

WHERE = (
    "https://image-net.org/challenges/LSVRC/2012 (ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz; an account is needed)"
)
CLASSES = 1000
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # those of the published weights
KIT = "ILSVRC2012_devkit_t12"
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    size: SizeOption = 224,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    decoders: Decoders = 0,
) -> Splits:
    """ImageNet: 1,281,167 photographs, 50,000 to test on (the published val), of 1,000 classes."""
    folder = needed_root(root, "imagenet", WHERE)
    for split, archive in (
        ("train", "ILSVRC2012_img_train.tar"),
        ("val", "ILSVRC2012_img_val.tar"),
    ):
        if not (folder / split).is_dir():
            raise DataError(
                f"Expected the folder {split} in {folder} but there is none. Unpack {archive} "
                f"into it; get it from {WHERE}. Nothing is downloaded for you."
            )
    train = _by_wnid(folder / "train")
    if len(train) != CLASSES:
        raise DataError(
            f"Expected {CLASSES} folders, one a wnid such as n01440764, in {folder / 'train'} but "
            f"got {len(train)}. ILSVRC2012_img_train.tar holds an archive a class, each to be "
            "unpacked into a folder of its own. For a part of ImageNet, take the data set `folder`."
        )
    kit = _kit(folder)
    words = _synsets(kit / META) if kit is not None and (kit / META).is_file() else {}
    names = {wnid: wnid for wnid in train}
    names |= {wnid: f"{wnid} {said}" for _, (wnid, said) in words.items() if wnid in train}
    entries: list[Entry] = [
        (f"train/{wnid}/{file}", names[wnid], "train")
        for wnid, files in train.items()
        for file in files
    ]
    return open_entries(
        folder,
        entries + _validation(folder, kit, words, names),
        0.0,  # no drawing: both splits are stated
        mode="RGB",
        size=size or 224,  # the photographs differ in size
        on_error=on_error,
        memory=memory,
        decoders=decoders,
        progress=progress,
        options=OPTIONS & {"size"},
        mean=MEAN,
        std=STD,
    )


def _by_wnid(folder: Path) -> dict[str, list[str]]:
    """Return wnid -> names of its images, both in the order of text.

    Raises:
        DataError: a class without an image.
    """
    wnids = sorted(e.name for e in os.scandir(folder) if re.fullmatch(r"n\d{8}", e.name))
    files_of = {wnid: _jpegs(folder / wnid) for wnid in wnids}
    if empty := [wnid for wnid, files in files_of.items() if not files]:
        raise DataError(
            f"Expected *.JPEG in {folder / empty[0]} but there are none ({len(empty)} such "
            "folders). Unpack the archive of that class again."
        )
    return files_of


def _jpegs(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith((".jpeg", ".jpg")))


def _validation(
    folder: Path,
    kit: Path | None,
    words: Mapping[int, tuple[str, str]],
    names: Mapping[str, str],
) -> list[Entry]:
    """Return the entries of val/, in folders by class or flat.

    Raises:
        DataError: files of the development kit are missing, or do not fit the images.
    """
    val = folder / "val"
    by_wnid = _by_wnid(val)
    if by_wnid:
        if absent := sorted(by_wnid.keys() - names.keys()):
            raise DataError(
                f"Expected the classes of {folder / 'train'} in {val} but got {absent[0]} "
                f"({len(absent)} unknown)."
            )
        return [
            (f"val/{wnid}/{file}", names[wnid], "test")
            for wnid, files in by_wnid.items()
            for file in files
        ]
    if missing := [f for f in (META, TRUTH) if kit is None or not (kit / f).is_file()]:
        raise DataError(
            f"Expected {' and '.join(missing)} in {folder / KIT / 'data'}, which tell the classes "
            f"of the images in {val}, but they are missing. Get ILSVRC2012_devkit_t12.tar.gz from "
            f"{WHERE}, or sort the images into a folder a wnid."
        )
    assert kit is not None
    lines = read_utf8(kit / TRUTH).split()
    files = [file for file in _jpegs(val) if _FLAT.fullmatch(file)]
    if len(files) != len(lines) or not files:
        raise DataError(
            f"Expected {len(lines)} images ILSVRC2012_val_*.JPEG in {val}, as {kit / TRUTH} has "
            f"lines, but got {len(files)}. Unpack ILSVRC2012_img_val.tar again."
        )
    entries: list[Entry] = []
    for file, line in zip(files, lines, strict=True):  # numbered from 1 without a gap
        wnid = words.get(int(line), ("", ""))[0] if re.fullmatch("[0-9]{1,9}", line) else ""
        if wnid not in names or int(_FLAT.fullmatch(file)[1]) != len(entries) + 1:  # type: ignore[index]
            raise DataError(
                f"Expected image {len(entries) + 1} of {val} to be of a class of "
                f"{folder / 'train'} but got {file} and ILSVRC2012_ID {line!r} ({wnid or 'none'} "
                f"in {kit / META}). Unpack the archives again."
            )
        entries.append((f"val/{file}", names[wnid], "test"))
    return entries


def _kit(folder: Path) -> Path | None:
    """Return the folder of the development kit's data, beside the images or in its own folder."""
    places = (folder / KIT / "data", folder / "data", folder)
    return next((p for p in places if (p / META).is_file() or (p / TRUTH).is_file()), None)


def _synsets(path: Path) -> dict[int, tuple[str, str]]:
    """Return ILSVRC2012_ID -> (wnid, words), of the classes alone (1 to 1000, not their groups)."""
    advice = "Unpack the development kit again."
    content = read_matlab(path, "synsets", what="`synsets`", advice=advice)
    fields = [f"synsets.{name}" for name in ("ILSVRC2012_ID", "WNID", "words")]
    if missing := [field for field in fields if field not in content]:
        raise DataError(f"Expected {', '.join(fields)} in {path} but got no {missing[0]}. {advice}")
    with reporting_damage(f"numbers, wnids and words of classes in {path}", advice):
        rows = zip(*(content[field] for field in fields), strict=True)
        classes = {int(number): (str(wnid), str(words)) for number, wnid, words in rows}
    return {number: classes[number] for number in sorted(classes) if number <= CLASSES}
