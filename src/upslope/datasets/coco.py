"""COCO instances: images by category, or masks drawn from the outlines of their objects.

root/annotations/instances_train2017.json  root/train2017/...   (or root/images/train2017/...)
root/annotations/instances_val2017.json    root/val2017/...     the test set
root/instances.json                        root/images/...      a share is drawn to test on
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from upslope.counts import format_count
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.coco_json import Instances, read_instances, refuse_shares
from upslope.datasets.encoded import Memory, ModeOption, OnError, SizeOption
from upslope.datasets.folder import open_entries
from upslope.datasets.image_duplicates import DuplicatesOption
from upslope.datasets.image_form import White
from upslope.datasets.layout import Entry, images_in
from upslope.datasets.left_out import LeftOut, name_some
from upslope.datasets.masks import Pair, open_pairs
from upslope.datasets.outlines import OutlineMasks
from upslope.datasets.paths import needed_root, visible
from upslope.datasets.several import Several, one_class
from upslope.datasets.splits import Splits
from upslope.datasets.subset import draw
from upslope.errors import ConfigError, DataError
from upslope.progress import Observer, no_progress

WHERE = "your own annotations, or https://cocodataset.org"
BACKGROUND = "background"
_MOST = 254  # classes of a mask, with the background
Part = tuple[Path, Path, Instances]
"""The file of annotations, the folder of its images, and what it holds."""


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    target: Annotated[
        Literal["classes", "masks"], Field(description="one category per image, or a mask")
    ] = "classes",
    annotations: Annotated[
        str | None, Field(description="JSON of instances to learn from, a path from the root")
    ] = None,
    test_annotations: Annotated[
        str | None, Field(description="JSON of instances to test on, a path from the root")
    ] = None,
    images: Annotated[
        str | None,
        Field(description="folder that the names of images start from, a path from the root"),
    ] = None,
    several: Several = "refuse",
    crowd: Annotated[
        Literal["ignore", "class"],
        Field(description="pixels of crowds in masks: ignored, or of their category"),
    ] = "ignore",
    empty: Annotated[
        Literal["unlabelled", "background"],
        Field(description="an image without objects, for masks: unlabelled, or background alone"),
    ] = "unlabelled",
    test_share: Annotated[
        float, Field(gt=0, lt=1, description="share to test on, if no annotations are")
    ] = 0.2,
    mode: ModeOption = "RGB",
    size: SizeOption = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    white: White = None,
    duplicates: DuplicatesOption = "auto",
) -> Splits:
    """COCO instances: images of one category each, or masks from polygons and run lengths."""
    folder = needed_root(root, "coco", WHERE)
    files = _files(folder, annotations, test_annotations)
    parts = [(path, *_open(folder, path, images)) for path in files]
    _same_categories(parts)
    _refuse_shared_images(parts)
    notes = (*_crowd_notes(parts), *_notes_on_unlisted(folder, parts))
    notes += _notes_on_other_files(folder, files)
    if target == "classes":
        entries, more = _entries(folder, parts, several)
        return open_entries(
            folder,
            entries,
            test_share,
            class_list=parts[0][2].categories,
            mode=mode,
            size=size,
            on_error=on_error,
            memory=memory,
            progress=progress,
            white=white,
            notes=(*notes, *more),
            duplicates=duplicates,
        )
    if mode is None:
        raise ConfigError("Expected `data.mode` to be RGB or L with masks but got null. Set one.")
    for path, _, instances in parts:
        refuse_shares(instances, path)
    pairs = [_pairs(folder, part, empty) for part in parts]
    notes += _outside_notes(parts)
    unlabelled = sum(pair.mask is None for part in pairs for pair in part)
    if unlabelled:
        notes += (
            f"{format_count(unlabelled, 'image has', 'images have')} no objects: unlabelled. "
            "`data.empty` background says that nothing is in them.",
        )
    several_count = sum(len(image.numbers) > 1 for _, _, part in parts for image in part.images)
    if several_count:
        notes += (
            f"{format_count(several_count, 'image has', 'images have')} objects of several "
            "categories: "
            "pixels in two of them are ignored.",
        )
    return open_pairs(
        folder.name,
        folder,
        _divide(pairs, test_share),
        _reader(parts, crowd),
        mode=mode,
        size=(size, size) if size else None,
        on_error=on_error,
        memory=memory,
        progress=progress,
        white=white,
        notes=notes,
        duplicates=duplicates,
    )


def _files(folder: Path, train: str | None, test: str | None) -> list[Path]:
    """Return the files of annotations: to learn from and, if there is one, to test on."""
    if test is not None and train is None:
        raise ConfigError(
            "Expected `data.annotations` beside `data.test_annotations` but got none. Name it too."
        )
    if train is not None:
        files = [folder / name for name in (train, test) if name is not None]
        for path in files:
            if not path.is_file():
                raise DataError(f"Expected COCO instances in {path} but there is no such file.")
        return files
    for place in (folder / "annotations", folder):
        pair = [visible(place.glob(f"instances_{part}*.json")) for part in ("train", "val")]
        if all(len(one) == 1 for one in pair):
            return [pair[0][0], pair[1][0]]
    every = visible({*(folder / "annotations").glob("*.json"), *folder.glob("*.json")})
    if len(every) != 1:
        raise DataError(
            f"Expected annotations/instances_train*.json and instances_val*.json in {folder}, or "
            f"one file of annotations, but got {name_some([p.name for p in every]) or 'none'}. "
            "Name "
            f"the file with `data.annotations`; get the data from {WHERE}."
        )
    return every


def _open(folder: Path, path: Path, images: str | None) -> tuple[Path, Instances]:
    """Return (the folder of images, what the annotations hold), after a look at every
    image's file.
    """
    instances = read_instances(path)
    if not instances.images:
        raise DataError(f"Expected images in {path} but it lists none.")
    split_name = path.stem.removeprefix("instances_")
    places = (split_name, f"images/{split_name}", "images", "") if images is None else (images,)
    first = instances.images[0].file
    home = next((folder / p for p in places if (folder / p / first).is_file()), None)
    if home is None:  # the first may be missing alone
        counts = {
            p: sum((folder / p / image.file).is_file() for image in instances.images)
            for p in places
        }
        home = folder / max(counts, key=lambda p: counts[p])
    missing = [image.file for image in instances.images if not (home / image.file).is_file()]
    if missing:
        raise DataError(
            f"Expected the images that {path} lists in {home} but "
            f"{format_count(len(missing), 'file is', 'files are')} missing: {name_some(missing)}. "
            "Add "
            "them, or name the folder with `data.images`."
        )
    return home, instances


def _same_categories(parts: Sequence[Part]) -> None:
    first, last = parts[0], parts[-1]
    if first[2].categories != last[2].categories:
        differing = sorted({*first[2].categories} ^ {*last[2].categories})
        raise DataError(
            f"Expected the same categories in the same order of ids in {first[0]} and {last[0]} "
            f"but they differ{f' in {name_some(differing)}' if differing else ' in their order'}. "
            "Write both from one list."
        )


def _refuse_shared_images(parts: Sequence[Part]) -> None:
    """Refuse images that two files of annotations list, as each may say something else of them."""
    files = {path: {(home / i.file).resolve() for i in part.images} for path, home, part in parts}
    if in_both := sorted(set.intersection(*files.values())) if len(files) > 1 else []:
        raise DataError(
            f"Expected each image in one file of annotations but "
            f"{format_count(len(in_both), 'image is', 'images are')} in {parts[0][0]} and in "
            f"{parts[1][0]}, first {in_both[0].name!r}. Take them out of one."
        )


def _notes_on_other_files(folder: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """Return a sentence on files of instances that are not read."""
    there = {*folder.glob("instances*.json"), *(folder / "annotations").glob("instances*.json")}
    others = sorted(path.name for path in there - {*files})
    return (f"Left out {format_count(len(others), 'file')}: {name_some(others)}.",) * bool(others)


def _notes_on_unlisted(folder: Path, parts: Sequence[Part]) -> tuple[str, ...]:
    """Return a sentence on the images beside those that the annotations list."""
    files = {(home / image.file).resolve() for _, home, part in parts for image in part.images}
    there = {
        _id(folder, home, path): (home / path).resolve()
        for home in {home for _, home, _ in parts}
        for path in images_in(home, home, LeftOut())
    }
    left_out = LeftOut()
    for path in sorted(path for path, file in there.items() if file not in files):
        left_out.add("image", path, " that no annotations list")
    return left_out.notes()


def _crowd_notes(parts: Sequence[Part]) -> tuple[str, ...]:
    crowds = [image for _, _, part in parts for image in part.images if image.crowds]
    if not crowds:
        return ()
    count = sum(image.crowds for image in crowds)
    return (
        f"{format_count(count, 'object is a crowd', 'objects are crowds')} (iscrowd), first in "
        f"{crowds[0].file!r}: of masks, their pixels are ignored unless `data.crowd` is class; for "
        "classes, they count as objects.",
    )


def _outside_notes(parts: Sequence[Part]) -> tuple[str, ...]:
    """A sentence on objects none of whose polygons reaches into the image."""
    files = [
        image.file
        for _, _, part in parts
        for image in part.images
        for outline in image.outlines
        if outline.lies_outside(*image.size)
    ]
    if not files:
        return ()
    return (
        f"{format_count(len(files), 'object lies', 'objects lie')} beside the image, first that of "
        f"{files[0]!r}: in no mask. Are the outlines for another size of the images?",
    )


def _id(folder: Path, home: Path, file: str) -> str:
    """The path of an image from the root, which it may lie beside: images may have a disk of their
    own."""
    path = home / file
    if not path.is_relative_to(folder):
        path, folder = home.resolve() / file, folder.resolve()
        return Path(os.path.relpath(path, folder)).as_posix()
    return path.relative_to(folder).as_posix()


def _entries(
    folder: Path, parts: Sequence[Part], several: str
) -> tuple[list[Entry], tuple[str, ...]]:
    """Return (id, category, split) of each image with one category or none."""
    names = parts[0][2].categories
    splits = ("train", "test") if len(parts) > 1 else ("",)
    labels = {
        (_id(folder, home, image.file), split): sorted(names[number] for number in image.numbers)
        for (_, home, part), split in zip(parts, splits, strict=True)
        for image in part.images
    }
    usable, notes = one_class(
        {id_: categories for (id_, _), categories in labels.items()}, several, folder
    )
    return [(id_, usable[id_], split) for id_, split in labels if id_ in usable], notes


def _pairs(folder: Path, part: Part, empty: str) -> list[Pair]:
    path, home, instances = part
    boxes = [image for image in instances.images if image.boxes]
    if boxes:
        count = sum(image.boxes for image in boxes)
        raise DataError(
            f"Expected an outline (segmentation) of every object in {path} but "
            f"{format_count(count, 'object has', 'objects have')} a box alone, first in "
            f"{boxes[0].file!r}: no mask follows from it. Add outlines, or set `data.target` to "
            "classes."
        )
    return [
        Pair(
            _id(folder, home, image.file),
            home / image.file,
            path if image.outlines or empty == "background" else None,
        )
        for image in instances.images
    ]


def _reader(parts: Sequence[Part], crowd: Literal["ignore", "class"]) -> OutlineMasks:
    """Return outlines by image; classes are the categories behind the background."""
    names = parts[0][2].categories
    if BACKGROUND in names:
        raise DataError(
            f"Expected categories of objects in {parts[0][0]} but one is {BACKGROUND!r}, the name "
            "of pixels in no object. Rename it."
        )
    if len(names) >= _MOST:
        raise DataError(
            f"Expected at most {_MOST - 1} categories for masks but {parts[0][0]} has "
            f"{len(names)}. Leave out what is not needed."
        )
    images = {home / image.file: image for _, home, part in parts for image in part.images}
    return OutlineMasks(
        (BACKGROUND, *names),
        {path: image.outlines for path, image in images.items()},
        {path: image.size for path, image in images.items()},
        crowd,
    )


def _divide(pairs: list[list[Pair]], test_share: float) -> dict[str, list[Pair]]:
    if len(pairs) == 2:
        return {"train": pairs[0], "test": pairs[1]}
    pairs_with_objects = [pair for pair in pairs[0] if pair.mask]
    labels = np.full(len(pairs_with_objects), UNKNOWN, dtype=np.int64)  # nothing to stratify by
    positions: list[int] = []
    if pairs_with_objects:
        count = round(test_share * len(pairs_with_objects))
        positions = draw([pair.id for pair in pairs_with_objects], labels, count, "test")[
            0
        ].tolist()
    test = {pairs_with_objects[i].id for i in positions}
    return {
        "train": [pair for pair in pairs[0] if pair.id not in test],
        "test": [pairs_with_objects[i] for i in positions],
    }
