"""The JSON of COCO's instances: images, categories, and the objects in each image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from upslope.datasets.outlines import Outline, read_runs
from upslope.errors import DataError
from upslope.files import from_json, object_of_pairs
from upslope.reading import check_room, reporting_damage

_ROOM = 8
"""Bytes of memory that a byte of JSON takes at most as lists of numbers: 40 for "1.5, ", which is a
float of 24 and its place of 8, and the text beside."""
_SIDE = 2**16  # pixels along an edge that a file may state
_ADVICE = "Export it again."
Rectangle = tuple[int, float, float, float, float]


@dataclass(frozen=True)
class CocoImage:
    """An image: its file as the JSON names it, (height, width), and its objects.

    numbers: of the categories of all its objects, those in crowds among them. outlines: objects
    with a polygon or run lengths. crowds: objects that are crowds. boxes: objects without outline.
    objects: all of them. rectangles: (number, left, top, width, height) of those that have a box.
    """

    file: str
    size: tuple[int, int]
    numbers: frozenset[int]
    outlines: tuple[Outline, ...]
    crowds: int
    boxes: int
    objects: int
    rectangles: tuple[Rectangle, ...]


@dataclass(frozen=True)
class Instances:
    """Images in the order of the file, and names of categories in the order of their ids."""

    categories: tuple[str, ...]
    images: tuple[CocoImage, ...]


def read_instances(path: Path) -> Instances:
    """Return what a file of COCO instances holds.

    Numbers of categories are from 0, in the order of the ids.

    Raises:
        DataError: the file is too large, no JSON or no instances; ids or names that are there
            twice or stand for nothing; a file name that leads elsewhere; outlines that are none.
    """
    instances = parse_instances(read_content(path), path)
    with reporting_damage(f"COCO instances in {path}", _ADVICE):
        images = tuple(replace(one, file=_inside(one.file)) for one in instances.images)
        if twice := [name for name, n in Counter(one.file for one in images).items() if n > 1]:
            raise ValueError(f"its images have the file_name {twice[0]!r} twice")
    return replace(instances, images=images)


def read_content(path: Path, kind: str = "COCO instances") -> Any:
    """Return what a JSON file holds, as plain lists and dicts.

    kind: of the content, as messages name it.

    Raises:
        DataError: the file is too large, no JSON, or has a key twice in an object.
    """
    with reporting_damage(f"{kind} in {path}", _ADVICE):
        check_room(_ROOM * path.stat().st_size, path)
        return from_json(path.read_bytes(), object_of_pairs)


def parse_instances(content: Any, path: Path) -> Instances:
    """Return the instances in the content of a file at `path`.

    Raises as `read_instances`, but for names of files, which may be any: who opens the files looks
    at them before.
    """
    with reporting_damage(f"COCO instances in {path}", _ADVICE):
        if not isinstance(content, dict):
            raise ValueError("it is no object with images, annotations and categories")
        lists: dict[str, Any] = {
            key: content.get(key) for key in ("images", "annotations", "categories")
        }
        for key, entries in lists.items():
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise ValueError(f"it has no list of objects `{key}`")
        categories = _by_id(lists["categories"], "categories", "name")
        images = _by_id(lists["images"], "images", "file_name")
        numbers = {id_: number for number, id_ in enumerate(sorted(categories))}
        objects: dict[int, list[dict[str, Any]]] = {id_: [] for id_ in images}
        for entry in lists["annotations"]:
            for key, known_ids in (("image_id", images), ("category_id", categories)):
                if type(entry.get(key)) is not int or entry[key] not in known_ids:
                    raise ValueError(
                        f"its annotation {entry.get('id')} has the {key} {entry.get(key)!r}, which "
                        "is not there"
                    )
            objects[entry["image_id"]].append(entry)
        return Instances(
            tuple(categories[id_]["name"] for id_ in numbers),
            tuple(_image(image, objects[id_], numbers) for id_, image in images.items()),
        )


def refuse_shares(instances: Instances, path: Path) -> None:
    """Refuse polygons, or boxes, that are shares of their images, as some tools write: read as
    pixels, all of them would lie in the first one.

    Raises:
        DataError: none of their numbers is above 1, and not all of them are whole.
    """
    images = instances.images
    polygons = [
        p.ravel() for image in images for outline in image.outlines for p in outline.polygons
    ]
    boxes = [np.array(box[1:]) for image in images for box in image.rectangles]
    for kind, arrays in (("polygons", polygons), ("boxes", boxes)):
        numbers = np.concatenate(arrays) if arrays else np.zeros(0)
        if len(numbers) and numbers.max() <= 1 and (numbers % 1).any():
            raise DataError(
                f"Expected the {kind} in {path} in pixels but none of their numbers is above 1, as "
                "of shares of the image's sides. Multiply them by its width and height."
            )


def _by_id(entries: Any, what: str, name: str) -> dict[int, dict[str, Any]]:
    """Return entries by their ids; ids and names must differ."""
    by_id: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for entry in entries:
        id_, text = entry.get("id"), entry.get(name)
        if type(id_) is not int or not isinstance(text, str) or not text.strip():
            raise ValueError(f"its {what} have the id {id_!r} and the {name} {text!r}")
        if id_ in by_id or text in names:
            raise ValueError(f"its {what} have the id {id_} or the {name} {text!r} twice")
        by_id[id_] = entry
        names.add(text)
    return by_id


def _inside(name: str) -> str:
    """Return a name of a file in the folder of images, with slashes where Windows writes
    backslashes.

    Raises:
        ValueError: it leads elsewhere.
    """
    path = name.replace("\\", "/")
    if path.startswith("/") or ".." in PurePosixPath(path).parts or PureWindowsPath(name).drive:
        raise ValueError(f"the file name {name!r} leads out of the folder of images")
    return PurePosixPath(path).as_posix()  # "./a.jpg" is "a.jpg", which may be listed as well


def _image(
    image: Mapping[str, Any], entries: list[dict[str, Any]], numbers: Mapping[int, int]
) -> CocoImage:
    name: str = image["file_name"]
    size: tuple[Any, Any] = (image.get("height"), image.get("width"))
    if not all(type(side) is int and 0 < side <= _SIDE for side in size):
        raise ValueError(f"{name!r} has the height and width {size}")
    crowds = boxes = 0
    outlines: list[Outline] = []
    rectangles: list[Rectangle] = []
    for entry in entries:
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError(f"its annotation {entry.get('id')} has iscrowd {crowd!r}, not 0 or 1")
        crowds += bool(crowd)
        if entry.get("bbox"):
            rectangles.append((numbers[entry["category_id"]], *_rectangle(entry)))
        outline = _outline(entry, numbers[entry["category_id"]] + 1, bool(crowd), size)
        if outline is None:
            boxes += 1
        else:
            outlines.append(outline)
    return CocoImage(
        name,
        size,
        frozenset(numbers[entry["category_id"]] for entry in entries),
        tuple(outlines),
        crowds,
        boxes,
        len(entries),
        tuple(rectangles),
    )


def _rectangle(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    box = entry["bbox"]
    sound = isinstance(box, list) and len(box) == 4 and all(
        type(v) in (int, float) and math.isfinite(v) and abs(v) <= _SIDE for v in box
    )  # fmt: skip
    if not sound:
        raise ValueError(
            f"the bbox of its annotation {entry.get('id')} is {box!r}, not [left, top, width, "
            "height]"
        )
    left, top, width, height = (float(v) for v in box)
    return left, top, width, height


def _outline(
    entry: Mapping[str, Any], number: int, crowd: bool, size: tuple[Any, Any]
) -> Outline | None:
    """Return the outline of an object; None where it has a box alone."""
    segmentation = entry.get("segmentation")
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, dict):
            return Outline(number, crowd, (), read_runs(segmentation, *size))
        if not isinstance(segmentation, list):
            raise ValueError("the segmentation is neither polygons nor run lengths")
        return Outline(number, crowd, tuple(_polygon(one) for one in segmentation))
    except ValueError as error:
        raise ValueError(
            f"the segmentation of its annotation {entry.get('id')}: {error}"
        ) from error


def _polygon(values: Any) -> Any:
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        raise ValueError("a polygon is no list of x, y, x, y ... of three corners or more")
    if not all(type(v) in (int, float) and math.isfinite(v) and abs(v) <= _SIDE for v in values):
        raise ValueError(f"a polygon has corners that are no numbers of at most {_SIDE:,}")
    return np.array(values, dtype=np.float64).reshape(-1, 2)
