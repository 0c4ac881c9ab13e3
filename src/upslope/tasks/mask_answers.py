"""Masks as annotators give them: an array or a file of class numbers, kept as text in the ledger.

The text is `png:` and a lossless PNG in base64: a few kilobytes, part of the run's history.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from upslope.errors import DataError
from upslope.image_depth import is_deep_colour
from upslope.images import check_pixels, load_whole, most_pixels, open_image
from upslope.mask_files import check_lossless, class_numbers, storage_of, without_full_alpha
from upslope.reading import reporting_damage

PREFIX = "png:"
_AS_TEXT, _ADVICE = f"a mask as text, {PREFIX}...,", "Draw it again."
_BLACK_AND_WHITE = 2  # classes, of which programs save the second as white
_LARGEST = 255
"""The largest number in a pixel of the PNG."""

Mask = NDArray[np.uint8]


def encode_mask(mask: Mask) -> str:
    """Return a mask, (h, w) uint8, as text."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return PREFIX + base64.b64encode(buffer.getvalue()).decode()


def decode_mask(text: str) -> Mask:
    """Return the mask that `encode_mask` wrote.

    Raises:
        DataError: text that it did not write.
    """
    with open_image(_decode_base64(text), _AS_TEXT, _ADVICE) as image:
        check_pixels(image, _AS_TEXT, most_pixels())
        load_whole(image)
        return np.array(image, dtype=np.uint8)


def mask_of(answer: Any, classes: int, ignore: int) -> str:
    """Return a mask as text.

    answer: (h, w) whole numbers as an array or tensor, an image of Pillow, or the path of a file
    whose levels are class numbers; or a mask as text already. ignore: the value of pixels that
    count nowhere.

    Raises:
        DataError: another shape or type, a file that cannot be read, values that are no classes, or
            that a byte cannot hold.
    """

    def is_value(numbers: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(((numbers >= 0) & (numbers < classes)) | (numbers == ignore))

    if isinstance(answer, str) and answer.startswith(PREFIX):
        mask: Any = _read(_decode_base64(answer), "a mask as text", is_value)
    elif isinstance(answer, str | Path):
        mask = _read(Path(answer), answer, is_value)
    elif isinstance(answer, Image.Image):
        mask = _levels(answer, "the image", is_value)
    else:
        mask = np.asarray(answer.detach().cpu() if hasattr(answer, "detach") else answer)
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise DataError(
            f"Expected a mask of whole numbers, (h, w), but got {mask.dtype} of shape {mask.shape}."
        )
    wrong = np.unique(mask[~is_value(mask)])
    if len(wrong):
        raise DataError(
            f"Expected a mask of the classes 0 to {classes - 1}, and {ignore} for pixels that "
            f"count nowhere, but got {wrong[:5].tolist()}."
        )
    if classes == _BLACK_AND_WHITE and np.unique(mask).tolist() == [0, ignore]:
        warnings.warn(
            f"A mask holds 0 and {ignore} alone: pixels of {ignore} count nowhere, and nothing in "
            "it is of class 1. Where they are of that class, answer again with 1 in their place.",
            stacklevel=2,
        )
    if (mask > _LARGEST).any():
        raise DataError(
            f"Expected an answer of classes up to {_LARGEST}, as a byte for each pixel holds, but "
            f"got class {int(mask.max())}. Draw masks of more classes into the data set."
        )
    if not 0 <= ignore <= _LARGEST and (mask == ignore).any():
        raise DataError(
            f"Expected every pixel of a mask to have a class but some have {ignore}, which no file "
            "holds. Set the task's `ignore_index` to 255."
        )
    return encode_mask(mask.astype(np.uint8))


def _read(
    source: Path | bytes, name: object, is_value: Callable[[NDArray[Any]], Any]
) -> NDArray[Any]:
    with open_image(source, f"a mask in {name}", "Repair or remove it.") as image:
        check_pixels(image, name, most_pixels())
        return _levels(image, name, is_value)


def _decode_base64(text: str) -> bytes:
    """The file that a mask as text holds."""
    with reporting_damage(_AS_TEXT, _ADVICE):
        return base64.b64decode(text.removeprefix(PREFIX), validate=True)


def _levels(
    image: Image.Image, name: object, is_value: Callable[[NDArray[Any]], Any]
) -> NDArray[Any]:
    """(h, w) class numbers of an image, turned as the pixels of its image are."""
    check_lossless(image, name)
    storage = storage_of(image)
    upper_bits_alone = is_deep_colour(image)  # of grey with an alpha channel, as LA
    load_whole(image)
    mask = without_full_alpha(ImageOps.exif_transpose(image))
    if upper_bits_alone or mask.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise DataError(
            f"Expected class numbers as the levels of {name} but it is of mode {image.mode}. Save "
            "the mask as grey levels or a palette, not as colours."
        )
    return class_numbers(mask, storage, is_value, name)
