"""Refuse what Pillow passes over in a TIFF file, or reads otherwise than it is stored.

Pillow reads the first page, whatever it is, keeps the channels that its mode has, takes signed
bytes for unsigned ones, and mixes up the bytes of some files of 16 bits. `images` calls this for
every TIFF that it opens.
"""

from __future__ import annotations

import re
from typing import Any

from PIL.TiffImagePlugin import TiffImageFile

_SUBFILE, _BITS, _DESCRIPTION, _OFFSETS, _SAMPLES, _PLANES = 254, 258, 270, 273, 277, 284
_PREDICTOR, _INNER_PAGES, _FORMAT, _DEPTH = 317, 330, 339, 32997
"""Tags of TIFF; _FORMAT is the type of the samples, _DEPTH the number of slices of a volume."""
_REDUCED_IMAGE, _TRANSPARENCY_MASK = 1, 4  # bits of the tag _SUBFILE
_SEPARATE, _SIGNED_LEVELS = 2, 2  # values of _PLANES and _FORMAT
_IMAGEJ = re.compile(r"ImageJ=.*?^images=(\d+)$", re.DOTALL | re.MULTILINE)
"""The description by which ImageJ says how many images lie one after the other in a page."""


def select_page(image: TiffImageFile) -> int:
    """Make the one page of full size the current one, and return how many there are.

    Reduced copies and masks of transparency, which some programs put in front, are no pages of
    their own. The first page stays the current one where several are of full size.

    Raises:
        ValueError: there are such copies alone; the picture itself lies where Pillow does not look.
    """
    full = []
    for page in range(image.n_frames):
        image.seek(page)
        kind = image.tag_v2.get(_SUBFILE, 0)
        if not kind & (_REDUCED_IMAGE | _TRANSPARENCY_MASK):
            full.append(page)
        elif image.n_frames == 1 and _INNER_PAGES not in image.tag_v2:
            full.append(page)  # a copy that was saved alone is all that there is
    if not full:
        raise ValueError(
            "its pages are reduced copies or masks alone, and the image itself lies in a page "
            "within them (SubIFD), which is not read. Save the image as a file of its own"
        )
    image.seek(full[0])
    return len(full)


def check_stored(image: TiffImageFile) -> None:
    """Refuse a page of which Pillow would drop a part, or give other levels than it holds.

    Raises:
        ValueError: it holds a stack or a volume, more channels than are read, signed levels,
            channels of 16 bits one after the other, or differences that are packed as levels are;
            the message says what to do.
    """
    tags = image.tag_v2
    depth = max(_number(tags, _DEPTH), _stack_size(image))
    if depth > 1:
        raise ValueError(
            f"it holds {depth} images in one page, of which the first alone would be read. Save "
            "each as a file of its own, or the stack as an array of volumes (data set npz)"
        )
    count, bands = _number(tags, _SAMPLES), len(image.getbands())
    if count > bands:
        raise ValueError(
            f"it holds {count} channels, of which {bands} would be read (as {image.mode}). Save "
            "those that are meant, or all as an array (data set npz)"
        )
    by_libtiff = image.info.get("compression") != "raw"
    # libtiff gives levels in the machine's order; Pillow takes signed ones to be in the file's.
    mixed_up = by_libtiff and tags.prefix == b"MM"
    if _number(tags, _FORMAT) == _SIGNED_LEVELS and (image.mode == "L" or mixed_up):
        raise ValueError("its levels are signed numbers; save it with levels from 0")
    if _number(tags, _PREDICTOR) > 1 and image.info.get("compression") == "packbits":
        raise ValueError(
            "it holds differences between its levels (a predictor) compressed by PackBits, which "
            "would be read as levels. Save it uncompressed, or with LZW or Deflate"
        )
    if _number(tags, _PLANES) == _SEPARATE and bands > 1 and not by_libtiff:
        bits = tags.get(_BITS, (1,))
        if max(bits) > 8:
            raise ValueError(
                f"its channels of {max(bits)} bits lie one after the other, uncompressed, which "
                "cannot be read. Save it with the channels of each pixel side by side"
            )


def _number(tags: Any, tag: int) -> int:
    """Return the value of a tag, the largest where it has one for each channel; 1 where there is
    none.
    """
    value = tags.get(tag, 1)
    return int(max(value) if isinstance(value, tuple) else value)


def _stack_size(image: TiffImageFile) -> int:
    """Return how many images ImageJ says to lie in the page, where the file is long enough for
    them.

    Of a slice that was saved alone the description may still be that of its stack.
    """
    tags = image.tag_v2
    match = _IMAGEJ.match(str(tags.get(_DESCRIPTION, "")))
    if match is None or image.n_frames > 1 or image.fp is None:
        return 1
    count, bits = int(match[1]), tags.get(_BITS, (1,))
    size = image.width * image.height * _number(tags, _SAMPLES) * max(bits) // 8
    place = image.fp.tell()
    length = image.fp.seek(0, 2)
    image.fp.seek(place)
    offsets = tags.get(_OFFSETS, (0,))
    return count if length >= min(offsets) + count * size else 1
