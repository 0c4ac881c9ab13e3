"""Masks drawn from the outlines of objects: polygons, and run lengths as COCO writes them.

A pixel belongs to a polygon where its centre lies inside by the even-odd rule; (0, 0) is the upper
left corner of the image, and the centre of its first pixel (0.5, 0.5). COCO's own tool traces the
border at five times the resolution instead, and differs in single pixels of the border.

Run lengths count pixels down the columns, first those outside, then those inside, in turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from upslope.datasets.mask_classes import IGNORE, Mask
from upslope.errors import DataError
from upslope.images import Form, read_header
from upslope.reading import check_room

Inside = NDArray[np.bool_]
_ROOM = 5
"""Bytes per pixel while a mask is drawn: the mask, and four truth values of its objects."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One object: the number of its class, and its polygons, (k, 2) x and y each, or run lengths.

    number: from 1, as 0 is the background. crowd: it stands for a group of objects that nobody told
    apart.
    """

    number: int
    crowd: bool
    polygons: tuple[NDArray[np.float64], ...]
    runs: NDArray[np.int64] | None = None

    def lies_outside(self, height: int, width: int) -> bool:
        """Return whether there are polygons, and all of them lie beside the image."""
        return bool(self.polygons) and all(
            (polygon.max(axis=0) <= 0).any() or (polygon.min(axis=0) >= (width, height)).any()
            for polygon in self.polygons
        )

    def inside(self, height: int, width: int) -> Inside:
        """Return (height, width), True within the object."""
        if self.runs is not None:
            return fill_runs(self.runs, height, width)
        out = np.zeros((height, width), dtype=np.bool_)
        for polygon in self.polygons:
            out |= fill_polygon(polygon, height, width)
        return out


@dataclass(frozen=True, eq=False)
class OutlineMasks:
    """Reads the mask of an image from the outlines of its objects.

    classes: names, the background first. outlines: image -> its objects. sizes: image -> (height,
    width) that the annotations state. crowd: crowds are ignored, or are of their class. A pixel in
    objects of two classes is ignored.
    """

    classes: tuple[str, ...]
    outlines: Mapping[Path, Sequence[Outline]]
    sizes: Mapping[Path, tuple[int, int]]
    crowd: Literal["ignore", "class"] = "ignore"

    def read(self, path: Path, image: Path, form: Form) -> Mask:
        """Return (h, w) uint8, the classes of the image's pixels; path: the annotations.

        Another size is reached as for images, by the nearest pixel.

        Raises:
            DataError: the image cannot be read, is turned by its EXIF data, or is of another size
                than the annotations state.
        """
        header, size = read_header(image, str(image)), self.sizes[image]
        if header.turned or header.size != size:
            got = "is turned by its EXIF data" if header.turned else f"has {header.size}"
            raise DataError(
                f"Expected {image} to have (height, width) = {size}, as {path} states, unturned, "
                f"but it {got}. Save the image that was annotated."
            )
        check_room(_ROOM * size[0] * size[1], image, form.most)
        mask = self.draw(image)
        if form.size is not None and form.size != size:
            mask_image = Image.fromarray(mask)
            mask = np.asarray(ImageOps.fit(mask_image, form.size[::-1], Image.Resampling.NEAREST))
        return mask

    def draw(self, image: Path) -> Mask:
        """Return (height, width) uint8 at the size that is stated."""
        height, width = self.sizes[image]
        mask = np.zeros((height, width), dtype=np.uint8)
        for outline in self.outlines[image]:
            inside = outline.inside(height, width)
            if outline.crowd and self.crowd == "ignore":
                mask[inside] = IGNORE
                continue
            other = inside & (mask != 0) & (mask != outline.number)
            mask[inside] = outline.number
            mask[other] = IGNORE
        return mask


def fill_polygon(polygon: NDArray[np.float64], height: int, width: int) -> Inside:
    """Return (height, width), True where the centre of a pixel is inside by the even-odd rule.

    polygon: (k, 2), x and y of its corners; what lies outside of the image is cut off.
    """
    # A centre is inside where an odd number of edges crosses its row to the right of it.
    odd = np.zeros((height, width + 1), dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        low, high = min(y0, y1), max(y0, y1)
        first = max(0, math.ceil(low - 0.5))
        rows = np.arange(first, min(height, math.ceil(high - 0.5)))  # low <= row + 0.5 < high
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            odd[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] ^= True
    to_right = np.logical_xor.accumulate(odd[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(to_right[:, 1:])


def fill_runs(runs: NDArray[np.int64], height: int, width: int) -> Inside:
    """Return (height, width) of run lengths whose sum is height x width."""
    values = np.arange(len(runs)) % 2 == 1
    return np.asarray(np.repeat(values, runs).reshape(width, height).T)


def read_runs(segmentation: Mapping[str, Any], height: int, width: int) -> NDArray[np.int64]:
    """Return the run lengths of COCO's {size, counts}; counts are numbers, or text of six bits.

    Raises:
        ValueError: it is of another size than the image, or its runs do not cover the image.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"the run lengths are for the size {size}, not [{height}, {width}]")
    if isinstance(counts, str):
        counts = _decode_counts(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("the run lengths are no whole numbers from 0")
    if sum(counts) != height * width:
        raise ValueError(f"the run lengths cover {sum(counts):,} of {height * width:,} pixels")
    return np.array(counts, dtype=np.int64)


def _decode_counts(text: str) -> list[int]:
    """Return the numbers in COCO's compressed run lengths.

    A number is a sequence of characters from "0" on, five bits each and the lowest first; 32 says
    that more follow, and the highest bit of the last one is the sign. From the fourth number on,
    the difference to the number two before is stored.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"the run lengths hold {character!r}, or a number without end")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("the run lengths end within a number")
    return counts
