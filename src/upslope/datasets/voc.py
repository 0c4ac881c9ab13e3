"""Pascal VOC as its archive unpacks, and data of one's own in the same folders.

    root/ImageSets/Segmentation/{train,val}.txt  root/JPEGImages/  root/SegmentationClass/
    root/ImageSets/Main/{train,val}.txt          root/JPEGImages/  root/Annotations/

The list val is the test set. In masks, 255 is ignored: outlines of objects, and what is hard to
tell. M. Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, 2015.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from upslope.counts import format_count
from upslope.datasets.decoding import read_utf8
from upslope.datasets.encoded import Memory, OnError, SizeOption
from upslope.datasets.folder import open_entries
from upslope.datasets.layout import Entry, is_image
from upslope.datasets.left_out import name_some
from upslope.datasets.mask_classes import IGNORE, MaskClasses
from upslope.datasets.masks import Pair, open_pairs
from upslope.datasets.paths import needed_root
from upslope.datasets.several import Several, one_class
from upslope.datasets.splits import Splits
from upslope.datasets.unlabelled import ClassNames, class_names
from upslope.datasets.voc_objects import VocObjects, object_notes, read_objects
from upslope.errors import DataError
from upslope.images import OPTIONS
from upslope.progress import Observer, no_progress

WHERE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


_SUFFIXES = (".jpg", ".jpeg", ".png")


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    target: Annotated[
        Literal["masks", "classes"], Field(description="a mask, or one class per image")
    ] = "masks",
    classes: ClassNames = None,
    several: Several = "refuse",
    size: SizeOption = 384,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
) -> Splits:
    """Pascal VOC: masks of VOC2012, 1,464 and 1,449 of 21 classes, or your own; classes from XML.

    The photographs differ in size: the largest centred square of each is brought to size x size.
    `classes` are those of VOC if not given, for masks with the background first.
    """
    folder = needed_root(root, "voc", WHERE)
    kind = "Segmentation" if target == "masks" else "Main"
    inside = [folder, *sorted(folder.glob("VOCdevkit/VOC*")), *sorted(folder.glob("VOC20*"))]
    homes = [path for path in inside if (path / f"ImageSets/{kind}/train.txt").is_file()]
    if not homes:
        raise DataError(
            f"Expected ImageSets/{kind}/train.txt in {folder}, or in its VOCdevkit/VOC2012, "
            f"but there is none. Get the data from {WHERE}; nothing is downloaded for you."
        )
    home = homes[-1]  # the latest year
    lists = {part: home / f"ImageSets/{kind}/{part}.txt" for part in ("train", "val")}
    labels = home / ("SegmentationClass" if target == "masks" else "Annotations")
    suffix = ".png" if target == "masks" else ".xml"
    parts = {
        {"train": "train", "val": "test"}[part]: _read_listing(listing, home, labels, suffix)
        for part, listing in lists.items()
    }
    counts = Counter(pair.id for pairs in parts.values() for pair in pairs)
    if twice := [id_ for id_, count in counts.items() if count > 1]:
        raise DataError(
            f"Expected each image of {home} in one list, once, but {twice[0]!r} is listed twice. "
            "Remove one."
        )
    size = size or 384
    notes = _left_out_notes(homes, parts)
    names: tuple[str, ...] = CLASSES if target == "masks" else CLASSES[1:]
    if classes is not None:
        names = tuple(class_names((), classes, home))
    if target == "classes":
        entries, more = _entries(parts, several, home)
        return open_entries(
            home / "JPEGImages",
            entries,
            0.2,  # of no meaning: the lists say which are to test on
            class_list=names,
            mode="RGB",
            size=size,
            on_error=on_error,
            memory=memory,
            progress=progress,
            options=OPTIONS & {"size"},
            notes=(*notes, *more),
        )
    return open_pairs(
        home.name.lower(),
        home,
        parts,
        MaskClasses.of(names, "index", {i: i for i in range(len(names))} | {255: IGNORE}),
        size=(size, size),
        on_error=on_error,
        memory=memory,
        progress=progress,
        options=OPTIONS & {"size"},
        notes=notes,
    )


def _left_out_notes(homes: Sequence[Path], parts: Mapping[str, Sequence[Pair]]) -> tuple[str, ...]:
    """Return sentences on images in no list, and on other years; the last of `homes` is read."""
    read = {pair.image.name for pairs in parts.values() for pair in pairs}
    home = homes[-1]
    images = (path for path in (home / "JPEGImages").iterdir() if is_image(path.name))
    others = sorted(path.name for path in images if path.name not in read)
    notes = []
    if others:
        count = format_count(len(others), "image")
        notes.append(f"Left out {count} that neither list names: {name_some(others)}.")
    if len(homes) > 1:
        notes.append(
            f"Left out {name_some([path.name for path in homes[:-1]])}: {home.name} is read."
        )
    return tuple(notes)


def _read_listing(listing: Path, home: Path, labels: Path, suffix: str) -> list[Pair]:
    """Return the images of a list, each with its mask or its annotation, all of which must be
    there.
    """
    pairs = []
    for id_ in filter(None, map(str.strip, read_utf8(listing).splitlines())):
        if "/" in id_ or "\\" in id_:
            raise DataError(
                f"Expected names of images in {listing} but got {id_!r}, a path. Remove it."
            )
        files = (home / f"JPEGImages/{id_}{end}" for end in _SUFFIXES)
        image = next((path for path in files if path.is_file()), home / f"JPEGImages/{id_}.jpg")
        pairs.append(Pair(id_, image, labels / f"{id_}{suffix}"))
    _all_there(pairs, listing)
    return pairs


def _entries(
    parts: dict[str, list[Pair]], several: str, home: Path
) -> tuple[list[Entry], tuple[str, ...]]:
    """Return (file, class, split) of each image with objects of one class or none; notes."""
    objects: dict[str, VocObjects] = {}
    splits: dict[str, str] = {}
    for part, pairs in parts.items():
        for pair in pairs:
            assert pair.mask is not None  # `_read_listing` gives each its annotation
            file = pair.image.name
            objects[file], splits[file] = read_objects(pair.mask), part
    classes = {file: sorted(set(one.names)) for file, one in objects.items()}
    usable, notes = one_class(classes, several, home)
    entries = [(file, name, splits[file]) for file, name in usable.items()]
    return entries, (*object_notes(objects), *notes)


def _all_there(pairs: list[Pair], listing: Path) -> None:
    missing = [
        path for pair in pairs for path in (pair.image, pair.mask) if path and not path.is_file()
    ]
    if missing:
        raise DataError(
            f"Expected the images and masks that {listing} lists but "
            f"{format_count(len(missing), 'file is', 'files are')} missing, first {missing[0]}. "
            f"Unpack the archive of {WHERE} again."
        )
