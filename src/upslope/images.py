"""Decoding: one image file, of a kind in `image_formats`, to one uint8 array of a stated form."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from upslope.avif import coded_bits
from upslope.image_depth import (
    check_depth,
    is_deep_colour,
    is_deep_grey,
    ppm_maximum,
    raw_mode,
    scale_to_bytes,
)
from upslope.image_formats import describe_unread, readable_formats
from upslope.png import check_chunks, check_rows, has_late_orientation
from upslope.reading import check_regular, check_room, read_limit, reporting_damage
from upslope.tiff import check_stored, select_page

# Which images are too large is decided by `check_pixels`, which names them; Pillow warns of what is
# allowed here, and names none. Behind the filters that there are: a stricter one of yours holds.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)

Mode = Literal["RGB", "L"]
Pixels = NDArray[np.uint8]

OPTIONS = frozenset({"mode", "size", "white"})
"""Options of readers that a form is made of."""
_AT_ONCE = 8
"""Images that may be decoded at the same time: each may take this part of what a file may."""
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Bytes that Pillow takes for a pixel, by mode; 4 for all others."""

_SCALES = {"L;2": 85, "L;4": 17}
"""By which Pillow multiplies the levels of 2 and 4 bits."""
_BEHIND = 64  # bytes behind the pixels of an image, where the header of another would be
_ORIENTATION = 0x0112  # the tag of EXIF
_IMAGE_WIDTH = 256  # a tag of TIFF
_PNG_ORIENTATIONS = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}  # Pillow's names
_TURNS, _TRANSPOSES = range(2, 9), range(5, 9)  # its values that turn or mirror; that swap sides
_ADVICE = "Repair or remove it, or leave such images out: `-s experiment.on_corrupt=skip`."


def without_advice(error: Exception) -> str:
    """Return a message about an image that is left out already, without the advice to do so."""
    return str(error).replace(_ADVICE, "").strip()


def most_pixels() -> int:
    """Return how many bytes the pixels of one image may take at present."""
    return read_limit() // _AT_ONCE


@dataclass(frozen=True)
class Form:
    """The form that every image is brought to.

    size: (height, width), or None to keep it. white: the level of 16-bit images that becomes 255;
    None where there are none, and they are refused. most: bytes that the pixels of one image may
    take while it is decoded. options: of `OPTIONS`, those that the reader has: messages advise no
    others.
    """

    mode: Mode
    size: tuple[int, int] | None
    white: int | None = None
    most: int = field(default_factory=most_pixels, repr=False, compare=False)
    options: frozenset[str] = field(default=OPTIONS, repr=False, compare=False)


@contextmanager
def open_image(source: bytes | Path, wanted_words: str, advice: str) -> Iterator[Image.Image]:
    """Open an image of one page and a readable format; whatever fails inside is a DataError.

    wanted_words, advice: as for `reading.reporting_damage`.

    Raises:
        DataError: the file is damaged, of another format or no plain file, or the block failed.
    """
    with reporting_damage(wanted_words, advice, "it cannot be decoded"):
        if isinstance(source, Path):
            check_regular(source)
        if not (source.stat().st_size if isinstance(source, Path) else source):
            raise ValueError("it is empty, of 0 bytes")
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            image = Image.open(stream, formats=readable_formats())
        except UnidentifiedImageError as error:
            raise ValueError(describe_unread(source)) from error
        with image:
            refuse_pages(image)
            yield image


def check_pixels(image: Image.Image, name: object, most: int) -> None:
    """Refuse an open image whose pixels would take more than so many bytes, before they do.

    Raises:
        DataError: they would.
    """
    check_room(image.width * image.height * _BYTES.get(image.mode, 4), name, most)


def load_whole(image: Image.Image) -> None:
    """Decode the pixels of an open image; of a PNG, check also what Pillow leaves unchecked.

    Raises:
        ValueError: a checksum is wrong, or rows are missing; or whatever Pillow raises.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile) or image.fp is None:
        image.load()  # of another format, or decoded before
        return
    file, path = image.fp, os.fsdecode(image.filename)
    place = file.tell()
    check_chunks(file)
    file.seek(place)
    image.load()
    # Rows that a file does not have are zero, and stand at its end: where the last row is not, none
    # is missing, and the pixels need not be unpacked twice.
    last = image.crop((0, image.height - 1, image.width, image.height))
    if image.info.get("interlace") or not any(last.tobytes()):
        if file.closed:  # Pillow closes what it has opened
            with Path(path).open("rb") as again:
                check_rows(again)
        else:
            check_rows(file)


def decode(source: bytes | Path, name: str, form: Form) -> Pixels:
    """Decode an image to (c, h, w) uint8.

    EXIF rotation is applied; transparency is laid over white; 16-bit levels are scaled so that
    `form.white` becomes 255 (Pillow alone would clip them). Another size is reached by a centred
    crop to the shape wanted, then bicubic resampling; a JPEG much larger than wanted is decoded at
    a reduced scale.

    Raises:
        DataError: the image cannot be decoded, holds several pages or frames, levels above
            `form.white`, or more pixels than an image may; the message says which and why.
    """
    with open_image(source, f"an image in {name}", _ADVICE) as image:
        if form.size is not None:
            # Never below twice the size wanted, either way round: EXIF may turn the image.
            image.draft(None, (2 * max(form.size), 2 * max(form.size)))
        check_pixels(image, name, form.most)
        return pixels_of(image, form)


def pixels_of(image: Image.Image, form: Form) -> Pixels:
    """Return an opened image as (c, h, w) uint8, as `decode` does.

    Raises:
        ValueError: levels that cannot be brought to 8 bits; or whatever Pillow raises on a damaged
            file.
    """
    # Both before loading, after which Pillow forgets how it was stored.
    check_depth(image, form.white, "white" in form.options)
    _scale_transparent_level(image)
    maximum = ppm_maximum(image)
    load_whole(image)
    image = _to_mode(ImageOps.exif_transpose(image), form, maximum)
    if form.size is not None and image.size != form.size[::-1]:
        image = ImageOps.fit(image, form.size[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def natural_mode(mode: str) -> Mode:
    """Return the mode in which nothing of an image of this mode of Pillow's is lost, but for
    transparency and depth."""
    grey = mode in ("1", "L", "I", "F") or mode.startswith("I;16")
    return "L" if grey else "RGB"


@dataclass(frozen=True)
class Header:
    """An image as its header describes it.

    mode: Pillow's, such as RGB, CMYK or I;16. size: (height, width) once turned. deep: more than 8
    bits per channel. turned: its EXIF data ask for it. transparent: it has an alpha channel or a
    transparent colour. further: pictures beside the first that belong to it (MPO files of phones).
    wide: it has a colour profile other than sRGB's, such as Display P3 or Adobe RGB. coded_bits: of
    a colour of AVIF and HEIC pictures, of which 8 are given.
    """

    mode: str
    size: tuple[int, int]
    deep: bool
    turned: bool
    transparent: bool
    further: bool
    wide: bool
    coded_bits: int = 8

    @property
    def natural(self) -> Mode:
        """The mode in which nothing of the image is lost, but for transparency and depth."""
        return natural_mode(self.mode)


def read_header(source: bytes | Path, name: str) -> Header:
    """Read the header of an image. Raises as `decode`."""
    with open_image(source, f"an image in {name}", _ADVICE) as image:
        deep = is_deep_grey(image) or is_deep_colour(image)
        orientation = _orientation(image, name)
        height, width = image.height, image.width
        # Pillow states the size of a TIFF file as it is once turned; its tag, as it is stored.
        image_width = image.tag_v2.get(_IMAGE_WIDTH) if isinstance(image, TiffImageFile) else width
        if orientation in _TRANSPOSES and image_width in (None, width):
            height, width = width, height
        return Header(
            image.mode,
            (height, width),
            deep,
            orientation in _TURNS,
            image.has_transparency_data,
            getattr(image, "n_frames", 1) > 1,
            natural_mode(image.mode) == "RGB" and _has_other_profile(image),
            _coded_bits(image),
        )


def highest_level(source: bytes | Path, name: str) -> int:
    """Return the highest level of a 16-bit image, of which Pillow may keep the upper 8 bits alone.

    Raises as `decode`.
    """
    with open_image(source, f"an image in {name}", _ADVICE) as image:
        check_pixels(image, name, most_pixels())
        scale = 257 if is_deep_colour(image) else 1
        load_whole(image)
        return int(np.asarray(image).max()) * scale


def refuse_pages(image: Image.Image) -> None:
    """Raise ValueError where an open image file holds several pages or frames, or else what of a
    TIFF would be passed over (see `tiff.check_stored`).

    Reduced copies of a page in a TIFF, and the further pictures that phones put behind a JPEG
    (MPO), are no pages of their own.
    """
    count = getattr(image, "n_frames", 1)
    if isinstance(image, TiffImageFile):
        count = select_page(image)
        check_stored(image)
    if isinstance(image, PpmImageFile) and _has_second(image):
        raise ValueError(
            "another image follows in the same file, and the first alone would be read. Save each "
            "as a file of its own"
        )
    if count == 1 or image.format == "MPO":
        return
    raise ValueError(
        f"it holds {count} pages or frames, of which one alone would be read. Save each as a file "
        "of its own, or the stack as an array of volumes (data set npz)"
    )


def _has_second(image: PpmImageFile) -> bool:
    """Whether the header of another image follows the pixels of an open PBM, PGM or PPM file, which
    may hold several."""
    file = image.fp
    if file is None or not image.tile:
        return False
    decoder, _, offset, how = image.tile[0]
    if decoder == "ppm_plain":  # written as text: numbers alone, and comments
        return re.search(rb"P[1-7]\s", re.sub(rb"#[^\r\n]*", b"", _peek(file, offset))) is not None
    mode, *maximum = how if isinstance(how, tuple) else (how,)
    if str(mode).startswith("1"):
        row = -(-image.width // 8)
    else:
        is_wide = ";16" in str(mode) or (maximum and int(maximum[0]) > 255)
        row = image.width * len(image.getbands()) * (2 if is_wide else 1)
    behind = _peek(file, offset + row * image.height, _BEHIND).lstrip()
    return re.match(rb"P[1-7]\s", behind) is not None


def _peek(file: IO[bytes], offset: int, count: int = -1) -> bytes:
    """What an open file has from a place on, so many bytes at most; it stays where it was."""
    place = file.tell()
    file.seek(offset)
    content = file.read(count)
    file.seek(place)
    return content


def _orientation(image: Image.Image, name: str) -> int:
    """The orientation by EXIF data or XMP, 1 where there is none. A PNG is decoded for it where it
    may have one: Pillow reads what stands behind the pixels after them alone."""
    if isinstance(image, PngImagePlugin.PngImageFile) and image.fp is not None:
        if not _PNG_ORIENTATIONS & image.info.keys() and not has_late_orientation(image.fp):
            return 1
        check_pixels(image, name, most_pixels())
    return int(image.getexif().get(_ORIENTATION, 1))


def _coded_bits(image: Image.Image) -> int:
    """How many bits an open file has for a colour, by its kind where Pillow gives 8 of more."""
    if image.format == "AVIF" and isinstance(image, ImageFile.ImageFile) and image.fp is not None:
        return coded_bits(_peek(image.fp, 0))
    return int(image.info.get("bit_depth") or 8)  # of pillow-heif


def _has_other_profile(image: Image.Image) -> bool:
    """Whether a profile is embedded that does not call itself sRGB, in either of its text forms."""
    profile = image.info.get("icc_profile") or b""
    return bool(profile) and not any("sRGB".encode(e) in profile for e in ("ascii", "utf-16-be"))


def _scale_transparent_level(image: Image.Image) -> None:
    """Bring the level that is transparent to 8 bits, as Pillow brings all others of a PNG."""
    scale, level = _SCALES.get(raw_mode(image)), image.info.get("transparency")
    if scale and isinstance(level, int):
        image.info["transparency"] = scale * level


def _to_mode(image: Image.Image, form: Form, maximum: int) -> Image.Image:
    if is_deep_grey(image):
        image = Image.fromarray(scale_to_bytes(image, form.white, maximum, "white" in form.options))
    elif image.mode == "F":
        raise ValueError("it holds floats (mode F), which have no grey levels; use the npz format")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image if image.mode == form.mode else image.convert(form.mode)
