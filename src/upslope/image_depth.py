"""Levels of more than 8 bits: which images have them, and how they become 8 bits.

`images` decodes by it: Pillow alone would clip such levels, or keep the upper 8 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL = 2**16 - 1
"""White, where 16-bit levels fill their range."""
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and a value of it


def raw_mode(image: Image.Image) -> str:
    """Return how the samples are stored, such as RGB;16B; Pillow's mode may hold fewer bits."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    how = tile[0][3]
    first = how[0] if isinstance(how, tuple) and how else how
    return first if isinstance(first, str) else ""


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether an open image is grey with more than 8 bits, all of which are read."""
    return image.mode == "I" or image.mode.startswith("I;16")


def is_deep_colour(image: Image.Image) -> bool:
    """Return whether an open image has more than 8 bits for a colour, of which 8 alone are read."""
    return not is_deep_grey(image) and (";16" in raw_mode(image) or ppm_maximum(image) > 255)


def ppm_maximum(image: Image.Image) -> int:
    """Return the highest level that a PPM file states, by which Pillow scales to 8 or 16 bits.

    0 for all other files.
    """
    tile = getattr(image, "tile", None)
    how = tile[0][3] if image.format == "PPM" and tile else None
    return how[-1] if isinstance(how, tuple) and isinstance(how[-1], int) else 0


def check_depth(image: Image.Image, white: int | None, white_is_option: bool) -> None:
    """Refuse 16-bit images of which Pillow gives other levels than they hold.

    white: the level that becomes 255. white_is_option: the reader has it as an option, which
    messages may advise.

    Raises:
        ValueError: colour, of which it keeps the upper 8 bits, unless `white` is the full range;
            grey of which 0 is white.
    """
    if is_deep_grey(image) and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ValueError("0 is white in its 16-bit levels (WhiteIsZero); save it with 0 as black")
    if is_deep_colour(image) and white != FULL:
        advice = f"set `data.white` to {FULL} where its levels fill the range, or "
        raise ValueError(
            f"it holds 16 bits per channel ({raw_mode(image)}), of which the upper 8 can be read; "
            f"{advice * white_is_option}save it with 8 bits"
        )
    if is_deep_colour(image) and isinstance(image.info.get("transparency"), tuple):
        raise ValueError(
            "a colour of its 16 bits per channel is transparent, which their upper 8 do not tell; "
            "save it with an alpha channel, or with 8 bits"
        )


def scale_to_bytes(
    image: Image.Image, white: int | None, maximum: int, white_is_option: bool
) -> NDArray[np.uint8]:
    """Return 16-bit grey levels as 8 bits: 0 to 0, `white` to 255.

    maximum: as `ppm_maximum` gave it. white_is_option: as for `check_depth`.

    Raises:
        ValueError: there is no white, or a level above it or beyond 16 bits.
    """
    levels = np.asarray(image)
    if maximum and white not in (None, FULL):  # a white is of the levels as the file has them
        levels = np.rint(levels * (maximum / FULL)).astype(np.int32)
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > FULL:
        raise ValueError(f"grey levels from {low} to {high} exceed 16 bits")
    if white is None:
        advice = (
            "set `data.white` to the level that is white in the whole data set, such as 4095 for "
            f"12 bits, or {FULL}"
        )
        raise ValueError(
            f"it holds 16-bit grey levels, up to {high}; "
            f"{advice if white_is_option else 'save it with 8 bits'}"
        )
    if high > white:
        raise ValueError(
            f"it holds the grey level {high}, above the {white} of `data.white`; set `data.white` "
            "to the highest level of the whole data set"
        )
    pixels = np.rint(levels.astype(np.float64) * (255 / white)).astype(np.uint8)
    if isinstance(level := image.info.get("transparency"), int):
        pixels[levels == level] = 255
    return pixels
