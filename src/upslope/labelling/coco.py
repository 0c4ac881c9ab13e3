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

from upslope.datasets.coco_json import CocoImage, parse_instances
from upslope.errors import ConfigError, DataError
from upslope.files import write_text
from upslope.images import read_header
from upslope.labelling.exports import ExportCount, count_labels
from upslope.labelling.image_names import ImageNames
from upslope.labelling.outlines import (
    Mask,
    boxes_text,
    masks_text,
    read_outlines,
    run_lengths,
)
from upslope.labelling.people import MergeMethod, merge_answers
from upslope.labelling.project import names_of, read_project
from upslope.labelling.samples import FolderImages, Samples, open_samples
from upslope.labelling.settings import OUTLINES, AnswerKind
from upslope.labelling.state import AnswerLabel

ImportedLabel = str | list[str] | None
"""A name or an outline's text, names of a set, or None where the file says nothing of a sample."""


def read_coco_labels(
    path: Path, content: Any, kind: AnswerKind, samples: Samples
) -> list[tuple[str, ImportedLabel]]:
    """Return (id, label) of each image in a file of COCO instances.

    content: of the file at `path`. An image without objects says nothing: COCO does not tell
    whether somebody looked at it. Crowds count as objects of their category, but for boxes.

    Raises:
        DataError: a damaged file, objects of several categories for one class, boxes where masks
            are asked for, crowds where boxes are, and outlines of another size than the image.
    """
    instances = parse_instances(content, path)
    names = ImageNames(samples.ids)
    rows: list[tuple[str, ImportedLabel]] = []
    for image in instances.images:
        id_ = names.match([image.file], path)
        label = _label_of(image, kind, instances.categories, path) if image.numbers else None
        if label is not None and kind in OUTLINES:
            _check_size(image, id_, samples, path)
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
    samples = open_samples(settings.data, settings.classes, settings.target)
    if not isinstance(samples, FolderImages):
        raise ConfigError("Expected images of a folder for COCO's JSON. Export a .csv.")
    labels = merge_answers(state, settings.classes, merge)
    categories = {name: number for number, name in enumerate(settings.classes, 1)}
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, (id_, label) in enumerate(labels.items(), 1):
        size, parts = _objects(label, samples.root / id_, settings.kind, settings.classes)
        images.append({"id": number, "file_name": id_, "height": size[0], "width": size[1]})
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
        boxes = [(categories[n], x, y, w, h) for n, x, y, w, h in image.rectangles]
        return boxes_text(image.size, boxes)
    if image.boxes:
        raise DataError(
            f"Expected outlines on {image.file!r} in {path} but {image.boxes} objects have a box "
            "alone. Make a project of `--kind boxes`; nothing was recorded."
        )
    masks: dict[str, Mask] = {}
    for outline in image.outlines:
        name = categories[outline.number - 1]
        inside = outline.inside(*image.size)
        masks[name] = masks[name] | inside if name in masks else inside
    return masks_text(image.size, masks, categories)


def _check_size(image: CocoImage, id_: str, samples: Samples, path: Path) -> None:
    """Raise DataError where an image has another size than the one its outlines are for."""
    file = samples.root / id_ if isinstance(samples, FolderImages) else None
    if file is None or not file.is_file():
        return  # refused by its id
    header = read_header(file, str(file))
    if header.turned or header.size != image.size:
        got = "is turned by its EXIF data" if header.turned else f"has {header.size}"
        raise DataError(
            f"Expected {file} to have (height, width) = {image.size}, as {path} states, unturned, "
            f"but it {got}. Nothing was recorded."
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
