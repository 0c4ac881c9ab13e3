"""Decoding: one image file, of any kind that Pillow reads, to one uint8 array of a stated form."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from upslope.errors import DataError

Mode = Literal["RGB", "L"]
Pixels = NDArray[np.uint8]

BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on damaged files, format by format."""


@dataclass(frozen=True)
class Form:
    """The form that every image is brought to: mode, and (height, width) or None to keep it."""

    mode: Mode
    size: tuple[int, int] | None


def decode(source: bytes | Path, name: str, form: Form) -> Pixels:
    """(c, h, w) uint8.

    EXIF rotation is applied; transparency is laid over white; 16-bit grey is scaled to 8 bits
    (Pillow alone would clip it). Another size is reached by a centred crop to the shape wanted,
    then bicubic resampling; a JPEG much larger than wanted is decoded at a reduced scale.

    Raises:
        DataError: the image cannot be decoded; the message says which and why.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            if form.size is not None:
                # Never below twice the size wanted, either way round: EXIF may turn the image.
                opened.draft(None, (2 * max(form.size), 2 * max(form.size)))
            image = _to_mode(ImageOps.exif_transpose(opened), form.mode)
            if form.size is not None and image.size != form.size[::-1]:
                image = ImageOps.fit(image, form.size[::-1], Image.Resampling.BICUBIC)
            pixels = np.asarray(image, dtype=np.uint8)
    except BROKEN as error:
        raise DataError(
            f"Expected an image in {name} but it cannot be decoded: {error}. Repair or remove it, "
            'or leave such images out with `on_error` "skip".'
        ) from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True)
class Natural:
    """The form in which nothing of an image is lost: its mode, and its (height, width)."""

    mode: Mode
    size: tuple[int, int]


def natural_form(source: bytes | Path, name: str) -> Natural:
    """How an image is, once turned as its EXIF data say. Raises as `decode`."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
            turned = ImageOps.exif_transpose(image)
            return Natural("L" if grey else "RGB", (turned.height, turned.width))
    except BROKEN as error:
        raise DataError(
            f"Expected an image in {name} but it cannot be decoded: {error}. Repair or remove it, "
            'or leave such images out with `on_error` "skip".'
        ) from error


def _to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"grey levels from {levels.min()} to {levels.max()} exceed 16 bits")
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("it holds floats (mode F), which have no grey levels; use the npz format")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)
