"""Class numbers in files of masks: nothing that losses changed, and numbers told from levels.

The data sets of masks read their files by it, and so do answers that are masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from upslope.errors import DataError

Numbers = NDArray[np.int32]
_WEBP_HEAD = 2**16  # bytes, within which a WebP file names the kind of its pixels
_LOSSY = ("AVIF", "HEIF", "JPEG", "MPO")
"""Formats that change values. AVIF and HEIC need not, but their files do not tell Pillow."""
_DEEP = 2**16 - 1
"""The highest level of 16 bits."""
_TOPS = {"L;2": 3, "L;4": 15}
"""The highest number that Pillow brings to 255, by how a PNG or TIFF stores grey levels."""


def check_lossless(mask: Image.Image, path: object) -> None:
    """Refuse an open mask whose file keeps values nearly alone: JPEG, by itself or in a TIFF, AVIF,
    HEIC and lossy WebP. path: of the file, for messages too.

    Raises:
        DataError: it is such a file.
    """
    lossy = mask.format in _LOSSY or mask.info.get("compression") in ("jpeg", "webp")
    if mask.format == "WEBP" and isinstance(path, Path):
        with path.open("rb") as file:
            lossy = b"VP8 " in file.read(_WEBP_HEAD)
    if lossy:
        raise DataError(
            f"Expected a lossless mask but got {path}: {mask.format} with losses changes the "
            "values. Save it as PNG."
        )


@dataclass(frozen=True)
class Storage:
    """How a file stores the numbers of a mask that Pillow gives as levels.

    top: the number that becomes the highest level, of files whose numbers Pillow scales: PNG and
    TIFF of 2 or 4 bits, and PGM with a highest value of its own. None of all others. inverted: 0
    becomes the highest level, as in TIFF by WhiteIsZero and in PBM.
    """

    top: int | None = None
    inverted: bool = False


def storage_of(mask: Image.Image) -> Storage:
    """Return how the file of a mask stores its numbers, which is not known once it is decoded."""
    tile: Any = getattr(mask, "tile", None)
    how = tile[0][3] if tile else ""
    raw_mode = how[0] if isinstance(how, tuple) and how else how
    if mask.format == "PPM":
        highest = how[-1] if isinstance(how, tuple) else None
        is_scaled = isinstance(highest, int) and 0 < highest < _DEEP and highest != 255
        return Storage(highest if is_scaled else None, mask.mode == "1")
    if not isinstance(raw_mode, str):
        return Storage()
    return Storage(_TOPS.get(raw_mode[:3]), mask.format == "TIFF" and "I" in raw_mode[1:])


def without_full_alpha(mask: Image.Image) -> Image.Image:
    """Return a decoded mask without its alpha channel where that is opaque everywhere."""
    if mask.mode in ("LA", "RGBA") and mask.getextrema()[-1] == (255, 255):
        return mask.convert(mask.mode.removesuffix("A"))
    return mask


def class_numbers(
    mask: Image.Image, storage: Storage, is_value: Callable[[Numbers], Any], path: object
) -> Numbers:
    """Return (h, w) numbers of a mask of grey levels or of a palette.

    The entries of a palette count by their numbers. Programs that save a grey mask with few levels
    as a palette number the levels anew, and readers scale levels of less than 8 bits, and invert
    those of which 0 is white: where numbers and levels differ, those are meant that all stand for
    something. White of 1 bit is the level 255 as well, where 1 stands for nothing.

    mask: decoded. storage: as `storage_of` gave it before. is_value: tells which numbers stand for
    something.

    Raises:
        DataError: both do.
    """
    levels = np.asarray(mask).astype(np.int32)
    numbers = levels
    if mask.mode == "P":
        palette = np.zeros((256, 3), dtype=np.int32)
        colours = np.asarray(mask.getpalette("RGB"), dtype=np.int32).reshape(-1, 3)
        palette[: len(colours)] = colours
        is_grey = (palette[np.unique(numbers)] == palette[np.unique(numbers), :1]).all()
        levels = palette[numbers, 0] if is_grey else numbers
    elif mask.mode in ("1", "L") or storage.top is not None:
        highest = {"1": 1, "L": 255}.get(mask.mode, _DEEP)
        top = highest if storage.top is None else storage.top
        numbers = np.rint(levels * (top / highest)).astype(np.int32)
        numbers = top - numbers if storage.inverted else numbers
    if mask.mode == "1" and not is_value(np.unique(levels)).all():
        levels = 255 * levels
    differ = numbers != levels
    if not differ.any():
        return numbers
    by_number, by_level = (bool(np.all(is_value(np.unique(one)))) for one in (numbers, levels))
    if by_number and by_level:
        row, column = (int(i[0]) for i in np.nonzero(differ))
        raise DataError(
            f"Expected the numbers in {path} to be its grey levels but the number "
            f"{numbers[row, column]} is the grey {levels[row, column]}, and both stand for "
            "something. Save the mask as grey levels of 8 bits (mode L) with 0 as black."
        )
    return levels if by_level else numbers
