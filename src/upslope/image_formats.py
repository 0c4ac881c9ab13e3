"""Formats of image files that are read: always, or where a package or a library is installed."""

from __future__ import annotations

import functools
import importlib.util

from PIL import Image, features

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, whatever a file is called; JPEG with the MPO files of phones. Pillow knows
more: of EPS it would start Ghostscript, which runs the program that such a file is."""
AVIF_SUFFIX = ".avif"
"""Of pictures that are read where Pillow was built with libavif, as its wheels are."""
HEIC_SUFFIXES = (".heic", ".heif")
"""Suffixes of pictures that phones take, which are read where pillow-heif is installed."""


@functools.cache
def reads_avif() -> bool:
    """Say whether Pillow was built with the library that reads AVIF pictures."""
    return bool(features.check("avif"))


@functools.cache
def reads_heic() -> bool:
    """Say whether the package that reads HEIC pictures is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def readable_formats() -> tuple[str, ...]:
    """Return the formats that are read here, as Pillow calls them."""
    if not reads_heic():
        return FORMATS
    if "HEIF" not in Image.OPEN:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")
