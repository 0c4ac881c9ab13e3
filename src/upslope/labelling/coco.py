"""COCO's JSON of instances as a file of labels: read by `upslope label import`, and written.

A class or a set of labels is written as one object per label that covers the whole image, since
COCO knows objects alone. A mask is one object per class, with run lengths, and comes back pixel for
pixel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upslope.datasets.coco_json import CocoImage, parse_instances, refuse_shares
from upslope.errors import ConfigError, DataError
from upslope.files import write_text
from upslope.images import read_header
from upslope.labelling.exports import ExportCount, check_there, count_labels
from upslope.labelling.image_names import ImageNames
from upslope.labelling.imported_labels import ImportedLabel
from upslope.labelling.outlines import (
    Mask,
    boxes_text,
    masks_text,
    read_outlines,
    run_lengths,
)
from upslope.labelling.people import MergeMethod, merge_answers
from upslope.labelling.project import names_of, read_project
from upslope.labelling.samples import FolderImages, Samples, samples_of
from upslope.labelling.settings import OUTLINES, AnswerKind
from upslope.labelling.state import AnswerLabel

Box4 = tuple[float, float, float, float]
_EMPTY = "upslope_empty"
"""The key by which an export marks an image that was looked at and has no object."""
_ROUNDING = 0.0101
"""Pixels by which a box may be beyond an edge, as COCO rounds its left and its width to 0.01."""


def read_coco_labels(
    path: Path, content: Any, kind: AnswerKind, samples: Samples
) -> list[tuple[str, ImportedLabel]]:
    """Return (id, label) of each image in a file of COCO instances.

    content: of the file at `path`. An image without objects says nothing, since COCO does not tell
    whether somebody looked at it, but in what `export_coco` wrote. Crowds count as objects of their
    category, but for boxes.

    Raises:
        DataError: a damaged file, objects of several categories for one class, boxes where masks
            are asked for, crowds where boxes are, boxes and outlines without a pixel of the image,
            and outlines for an image that is turned.
    """
    instances = parse_instances(content, path)
    if kind in OUTLINES:
        refuse_shares(instances, path)
    names = ImageNames(samples.ids)
    empty_files = {image["file_name"] for image in content["images"] if image.get(_EMPTY) is True}
    rows: list[tuple[str, ImportedLabel]] = []
    for image in instances.images:
        id_ = names.match([image.file], path)
        label = _label_of(image, kind, instances.categories, path) if image.numbers else None
        if not image.numbers and image.file in empty_files and kind != "class":
            label = _nothing_seen(image.size, kind)
        if label is not None and kind in OUTLINES:
            _check_unturned(id_, samples, path)
        rows.append((id_, label))
    return rows


def export_coco(project: Path | str, path: Path, merge: MergeMethod = "majority") -> ExportCount:
    """Write the labels of a project over images as COCO instances, whole or not at all.

    Images that were passed or not answered are left out; a labelled image on which nothing is to be
    seen has no object. merge: how several people's answers become one label.

    Raises:
        ConfigError: samples that are no images of a folder.
        DataError: images that are gone or cannot be read.
        RunError: no project, or a disk that is full.
    """
    settings, state = read_project(project)
    samples = samples_of(settings)
    if not isinstance(samples, FolderImages):
        raise ConfigError("Expected images of a folder for COCO's JSON. Export a .csv.")
    labels = merge_answers(state, settings.classes, merge)
    if settings.kind not in OUTLINES:  # whose objects have the size of their image themselves
        check_there(samples, labels)
    categories = {name: number for number, name in enumerate(settings.classes, 1)}
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, (id_, label) in enumerate(labels.items(), 1):
        size, parts = _objects(label, samples.root / id_, settings.kind, settings.classes)
        image = {"id": number, "file_name": id_, "height": size[0], "width": size[1]}
        images.append(image if parts else {**image, _EMPTY: True})
        for name, part in parts:
            ids = {"id": len(objects) + 1, "image_id": number, "category_id": categories[name]}
            objects.append({**ids, "iscrowd": 0, **part})
    record = {
        "info": {"description": f"{len(images)} images labelled with Upslope"},
        "licenses": [],
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": objects,
    }
    write_text(path, json.dumps(record, ensure_ascii=False) + "\n")
    return count_labels(state, labels, len(objects))


def _label_of(
    image: CocoImage, kind: AnswerKind, categories: Sequence[str], path: Path
) -> ImportedLabel:
    """The label of an image with objects."""
    names = [categories[number] for number in sorted(image.numbers)]
    if kind == "labels":
        return names
    if kind == "class":
        if len(names) > 1:
            raise DataError(
                f"Expected objects of one category on {image.file!r} in {path} but got "
                f"{', '.join(names)}. Make a project of `--kind labels`; nothing was recorded."
            )
        return names[0]
    if kind == "boxes":
        if image.crowds:
            raise DataError(
                f"Expected single objects on {image.file!r} in {path} but {image.crowds} are "
                "crowds, for which there is no one box. Take them out; nothing was recorded."
            )
        if len(image.rectangles) != image.objects:
            raise DataError(
                f"Expected a box of every object on {image.file!r} in {path} but "
                f"{image.objects - len(image.rectangles)} have none. Nothing was recorded."
            )
        return boxes_text(
            image.size,
            [(categories[n], *_box_inside(image, box, path)) for n, *box in image.rectangles],
        )
    if image.boxes:
        raise DataError(
            f"Expected outlines on {image.file!r} in {path} but {image.boxes} objects have a box "
            "alone. Make a project of `--kind boxes`; nothing was recorded."
        )
    masks: dict[str, Mask] = {}
    for outline in image.outlines:
        name = categories[outline.number - 1]
        inside = outline.inside(*image.size)
        if not inside.any():
            raise DataError(
                f"Expected every object on {image.file!r} in {path} to have a pixel but an outline "
                f"of {name} has none. Take it out; nothing was recorded."
            )
        masks[name] = masks[name] | inside if name in masks else inside
    return masks_text(image.size, masks, categories)


def _nothing_seen(size: tuple[int, int], kind: AnswerKind) -> ImportedLabel:
    """The label of an image that was looked at and has no object."""
    if kind == "labels":
        return []
    return boxes_text(size, []) if kind == "boxes" else masks_text(size, {}, ())


def _box_inside(image: CocoImage, box: Sequence[float], path: Path) -> Box4:
    """A box of an image, less what rounding puts beyond its edges. Raises DataError."""
    left, top, across, down = box
    height, width = image.size
    right, bottom = left + across, top + down
    inside = (
        left >= -_ROUNDING and top >= -_ROUNDING and right <= width + _ROUNDING
        and bottom <= height + _ROUNDING and across > 0 and down > 0
    )  # fmt: skip
    if not inside:
        raise DataError(
            f"Expected the boxes on {image.file!r} in {path} to lie in its {width}x{height} pixels "
            f"but {list(box)} does not lie in them. Mend it; nothing was recorded."
        )
    if left < 0 or right > width:
        left, across = max(left, 0.0), min(right, width) - max(left, 0.0)
    if top < 0 or bottom > height:
        top, down = max(top, 0.0), min(bottom, height) - max(top, 0.0)
    return left, top, across, down


def _check_unturned(id_: str, samples: Samples, path: Path) -> None:
    """Raise DataError where EXIF data turn an image: its outlines are for the file as it lies."""
    file = samples.root / id_ if isinstance(samples, FolderImages) else None
    if file is not None and file.is_file() and read_header(file, str(file)).turned:
        raise DataError(
            f"Expected {file} to be unturned, as the outlines in {path} are for it, but it is "
            "turned by its EXIF data. Save it turned; nothing was recorded."
        )


def _objects(
    label: AnswerLabel, file: Path, kind: AnswerKind, classes: Sequence[str]
) -> tuple[tuple[int, int], list[tuple[str, Mapping[str, Any]]]]:
    """The (height, width) of an image, and the class, box, area and outline of its objects."""
    if kind in OUTLINES:
        outlines = read_outlines(str(label), kind, classes)
        if kind == "boxes":
            return outlines.size, [
                (name, {"bbox": box, "area": box[2] * box[3]}) for name, *box in outlines.boxes
            ]
        masks = outlines.masks or {}
        return outlines.size, [(n, _mask_object(masks[n])) for n in classes if n in masks]
    height, width = size = read_header(file, str(file)).size
    whole = {"bbox": [0, 0, width, height], "area": width * height}
    names = names_of(label, classes)
    return size, [(name, whole) for name in ([names] if isinstance(names, str) else names)]


def _mask_object(mask: Mask) -> Mapping[str, Any]:
    """A mask with at least one pixel, by run lengths down its columns."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    down, across = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    return {
        "bbox": [left, top, across, down],
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask.ravel(order="F"))},
    }
