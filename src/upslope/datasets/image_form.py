"""The form that all images of a data set are brought to: mode, size, and the white of 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from upslope.counts import format_count
from upslope.errors import DataError
from upslope.image_depth import FULL
from upslope.images import OPTIONS, Form, Mode, highest_level, read_header

White = Annotated[
    int | None,
    Field(
        ge=1,
        le=FULL,
        description="level of 16-bit images that becomes white, such as 4095 for 12 bits; "
        "65535 where they fill that range, if not given",
    ),
]

_LOOKED_AT = 1000  # images whose depth is looked at: half a second


@runtime_checkable
class HasFolder(Protocol):
    """A source of encoded images that are files of one folder."""

    @property
    def folder(self) -> Path:
        """Return the folder of the files."""
        ...


class MissingImageError(DataError):
    """A sample that has no image, where its table has a row for it."""


def form_of(
    source: Callable[[int], bytes | Path],
    ids: Sequence[str],
    mode: Mode | None,
    size: int | None,
    on_error: str,
    white: int | None = None,
    options: frozenset[str] = OPTIONS,
) -> tuple[Form, tuple[int, int, int]]:
    """Return (form, input shape) as the options say, or else as the first image is.

    With `on_error="skip"`, the first that can be decoded. white: as for `white_level`. options: as
    of `Form`.

    Raises:
        DataError: there is no image, that image cannot be decoded, or `white` must be given.
    """
    if not ids:
        place = source.folder if isinstance(source, HasFolder) else "the data set"
        raise DataError(f"Expected at least one image to learn from in {place} but there is none.")
    white = white_level(source, ids, white, options)
    if mode is not None and size is not None:
        form = Form(mode, (size, size), white, options=options)
        return form, (1 if mode == "L" else 3, size, size)
    for i in range(len(ids)):
        try:
            header = read_header(*read_image_named(source, ids, i))
        except DataError:
            if on_error == "skip" and i < len(ids) - 1:
                continue
            raise
        break
    image_mode = mode or header.natural
    height, width = (size, size) if size else header.size
    form = Form(image_mode, (size, size) if size else None, white, options=options)
    return form, (1 if image_mode == "L" else 3, height, width)


def white_level(
    source: Callable[[int], bytes | Path],
    ids: Sequence[str],
    white: int | None,
    options: frozenset[str] = OPTIONS,
) -> int | None:
    """Return the level of 16-bit images that is white: as given, or the full range if it is used.

    None where none of the images looked at, 1,000 at most and evenly spaced, holds 16 bits: one
    that does is then refused by `decode`. Images that cannot be read are left to `decode` too.
    options: as of `Form`.

    Raises:
        DataError: there are 16-bit images whose levels stay in the lower half of the range, as with
            12 bits in files of 16: scaled by the full range they would lose most of their levels.
    """
    if white is not None:
        return white
    highest, deep, colour, example = -1, 0, False, ""
    for i in np.unique(np.linspace(0, len(ids) - 1, min(_LOOKED_AT, len(ids))).astype(int)):
        try:
            image = read_image_named(source, ids, int(i))
        except MissingImageError:
            continue
        try:
            header = read_header(*image)
            if not header.deep:
                continue
            level = highest_level(*image)
        except DataError:
            continue
        deep, highest, example = deep + 1, max(highest, level), example or image[1]
        colour = colour or header.natural == "RGB"
        if highest > FULL // 2:
            return FULL
    if not deep:
        return None
    advice = (
        "Of colour the upper 8 bits alone can be read: scale the images and save them with 8 bits."
        if colour
        else "Scale the images and save them with 8 bits."
        if "white" not in options
        else f"Set `data.white` to the level that is to be white in all of them, such as "
        f"{_bits(highest)}; {FULL} scales by the full range."
    )
    raise DataError(
        f"Expected 16-bit images to use their range, 0 to {FULL}, but the highest level of "
        f"{format_count(deep, 'image')} with 16 bits looked at, such as {example}, is {highest}: "
        f"read as 8 bits, they would keep {round(highest / 257) + 1} levels. {advice}"
    )


def size_advice(form: Form) -> str:
    """Return what to do about images of several sizes, as a sentence."""
    if "size" in form.options:
        return "Set `data.size` to bring all images to one size."
    return "Bring all images to one size."


def _bits(level: int) -> int:
    """Return the highest level of the depth, 8 bits at least and even, that holds `level`."""
    depth = max(8, level.bit_length())
    return int(2 ** (depth + depth % 2) - 1)


def read_image_named(
    source: Callable[[int], bytes | Path], ids: Sequence[str], position: int
) -> tuple[bytes | Path, str]:
    """Return the bytes or the path of an image, and what messages call it."""
    content = source(position)
    return content, str(content) if isinstance(content, Path) else ids[position]
