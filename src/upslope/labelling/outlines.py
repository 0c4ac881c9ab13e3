"""Masks and boxes as labels: one text per sample, so that equal outlines are equal texts.

    {"boxes": [["car", 12.5, 40.0, 30.0, 18.25], ...], "size": [480, 640]}
    {"masks": {"car": [1200, 5, 635, 5, ...], ...}, "size": [480, 640]}

size: height and width in pixels. A box is class, left, top, width and height in pixels. A mask is
the lengths of runs of pixels, row by row from the top left, absent and present in turn, absent
first: the bits of the mask exactly. Classes are in the project's order, and without one there is no
entry: an empty object is the answer that nothing is to be seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError
from upslope.files import from_json, object_of_pairs
from upslope.reading import check_room

Mask = NDArray[np.bool_]
Box = tuple[str, float, float, float, float]


@dataclass(frozen=True)
class Outlines:
    """size: (height, width). boxes: class, left, top, width, height. masks: class -> (h, w)."""

    size: tuple[int, int]
    boxes: tuple[Box, ...] = ()
    masks: Mapping[str, Mask] | None = None


def boxes_text(size: tuple[int, int], boxes: Sequence[Box]) -> str:
    """Return the text of boxes. size: (height, width)."""
    entries = [[name, *(float(number) for number in numbers)] for name, *numbers in sorted(boxes)]
    return _text({"boxes": entries, "size": list(size)})


def masks_text(size: tuple[int, int], masks: Mapping[str, Mask], classes: Sequence[str]) -> str:
    """Return the text of masks. masks: class -> (h, w); classes without a pixel are left out.

    Raises:
        DataError: masks of names that are no classes.
    """
    _refuse_strangers(set(masks), classes, "masks")
    runs = {
        name: run_lengths(masks[name].ravel())
        for name in classes
        if name in masks and masks[name].any()
    }
    return _text({"masks": runs, "size": list(size)})


def read_outlines(text: str, kind: str, classes: Sequence[str]) -> Outlines:
    """Return what a text says. kind: "boxes" or "masks".

    Raises:
        DataError: no such text, names that are no classes, or outlines beyond the image.
    """
    try:
        body = from_json(text, object_of_pairs)
        height, width = (_whole(n) for n in body["size"])
        entries = body[kind]
        if height < 1 or width < 1:
            raise ValueError("a size that is not positive")
        if kind == "boxes":
            boxes = tuple(_box(entry, height, width) for entry in entries)
            names = {box[0] for box in boxes}
            outlines = Outlines((height, width), boxes)
        else:
            masks = {str(name): _mask(runs, height, width) for name, runs in entries.items()}
            names = set(masks)
            outlines = Outlines((height, width), (), masks)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"Expected {kind} as JSON with `{kind}` and `size` but got {text[:60]!r}: {error}."
        ) from error
    _refuse_strangers(names, classes, kind)
    return outlines


def classes_in(text: str) -> set[str]:
    """Return the classes of which a sound text has an object."""
    body = json.loads(text)
    return set(body["masks"]) if "masks" in body else {entry[0] for entry in body["boxes"]}


def canonical(text: str, kind: str, classes: Sequence[str]) -> str:
    """Return the one text of these outlines, whatever order and spaces the given one has.

    Raises:
        DataError: as `read_outlines`.
    """
    outlines = read_outlines(text, kind, classes)
    if kind == "boxes":
        return boxes_text(outlines.size, outlines.boxes)
    return masks_text(outlines.size, outlines.masks or {}, classes)


def run_lengths(pixels: Mask) -> list[int]:
    """Return the lengths of runs of equal pixels, absent first. pixels: (n,), in their order."""
    flat = np.concatenate(([False], pixels, [not bool(pixels[-1])]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.concatenate(([0], edges)))]


def _refuse_strangers(names: set[str], classes: Sequence[str], kind: str) -> None:
    if strangers := sorted(names - set(classes)):
        raise DataError(
            f"Expected the classes {', '.join(classes)} in {kind} but got "
            f"{', '.join(map(repr, strangers))}."
        )


def _mask(runs: Sequence[Any], height: int, width: int) -> Mask:
    lengths = [_whole(n) for n in runs]
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"runs of {sum(lengths)} pixels for {height * width}")
    check_room(height * width, "a mask")
    present = np.arange(len(lengths)) % 2 == 1
    return np.repeat(present, lengths).reshape(height, width)


def _box(entry: Sequence[Any], height: int, width: int) -> Box:
    name, *numbers = entry
    left, top, across, down = (float(n) for n in numbers)
    slack = 1e-6 * max(height, width)
    inside = (
        -slack <= left and -slack <= top and left + across <= width + slack
        and top + down <= height + slack and across >= 0 and down >= 0
    )  # fmt: skip
    if not isinstance(name, str) or not inside:
        raise ValueError(f"the box {list(entry)} does not lie in {width}x{height}")
    return (name, left, top, across, down)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), sort_keys=True)
