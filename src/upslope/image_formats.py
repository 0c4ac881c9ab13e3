"""Formats of image files that are read: always, or where a package or a library is installed."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import Image, features

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, whatever a file is called; JPEG with the MPO files of phones. Pillow knows
more: of EPS it would start Ghostscript, which runs the program that such a file is."""
AVIF_SUFFIX = ".avif"
"""Of pictures that are read where Pillow was built with libavif, as its wheels are."""
HEIC_SUFFIXES = (".heic", ".heif")
"""Suffixes of pictures that phones take, which are read where pillow-heif is installed."""
_HEAD = 64  # first bytes of a file, in which a HEIC picture names its kind
_HEIC_BRANDS = (b"heic", b"heix", b"hevc")


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


def describe_unread(source: bytes | Path) -> str:
    """Return why a file that is no readable picture is none, as a clause."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(_HEAD)
    else:
        head = source[:_HEAD]
    if not reads_heic() and head[4:8] == b"ftyp" and any(brand in head for brand in _HEIC_BRANDS):
        return (
            "it is a HEIC picture, whatever its suffix, which the package pillow-heif reads: pip "
            "install '.[label]' in a clone"
        )
    return f"Pillow cannot identify it as one of {', '.join(readable_formats())}"
