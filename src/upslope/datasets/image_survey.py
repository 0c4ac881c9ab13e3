"""Sentences on what decoding changes in images: colours, depth, transparency, borders, rotation.

Headers alone are read, of 5,000 images at most and evenly spaced: two seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from upslope.counts import format_count
from upslope.datasets.image_form import read_image_named
from upslope.errors import DataError
from upslope.image_depth import FULL
from upslope.images import Form, Header, read_header

_LOOKED_AT = 5000
_COLOUR = ("1", "L", "P", "RGB", "RGBA", "LA", "PA")
"""Modes that become RGB without a loss but for transparency."""
_GREY = ("LA", "La")
"""Modes of grey levels with transparency."""
_HOW = {
    "index": "the numbers of palette entries count as grey levels do",
    "colour": "by colour",
    "both": "grey ones by number, RGB by colour, palettes by what the table has of the two",
}


def survey_notes(
    source: Callable[[int], bytes | Path], ids: Sequence[str], form: Form, on_error: str
) -> tuple[str, ...]:
    """Return sentences on what `images.decode` changes to bring these images to `form`.

    Empty where nothing is changed. source: position -> the bytes or the path of an image.

    Raises:
        DataError: with `on_error="raise"`, a header that cannot be read, or a stack of pages; told
            here, since images that are streamed are decoded in the middle of a run.
    """
    headers: dict[str, Header] = {}
    sample = _sample_files(ids)
    for i in sample:
        try:
            headers[ids[i]] = read_header(*read_image_named(source, ids, i))
        except DataError:
            if on_error == "raise":
                raise
    of = f"of {len(headers):,} images"
    if len(sample) < len(ids):
        of += f" looked at (there are {len(ids):,})"
    notes = []
    for what, sentence in _CHANGES:
        changed_ids = [id_ for id_, header in headers.items() if what(header, form)]
        if changed_ids:
            kinds = Counter(headers[id_].mode for id_ in changed_ids)
            modes = ", ".join(f"{count:,} {mode}" for mode, count in sorted(kinds.items()))
            note = sentence.format(
                modes=modes,
                white=form.white or FULL,
                levels=_levels(form),
                white_option=" (`data.white`)" * ("white" in form.options),
                size_wanted="`data.size` asks for" if "size" in form.options else "is asked for",
            )
            notes.append(
                f"{len(changed_ids):,} {of} {note} For example {Path(changed_ids[0]).name}."
            )
    return tuple(notes)


def survey_parts(
    parts: Sequence[tuple[Callable[[int], bytes | Path], Sequence[str]]],
    form: Form,
    on_error: str,
) -> tuple[str, ...]:
    """Return the sentences of `survey_notes` on several parts, such as the pool and the test set.

    parts: (position -> the bytes or the path of an image, ids) of each.

    Raises:
        DataError: as `survey_notes`.
    """
    places = [(source, i) for source, ids in parts for i in range(len(ids))]
    every_id = [id_ for _, ids in parts for id_ in ids]

    def read(position: int) -> bytes | Path:
        source, place = places[position]
        return source(place)

    return survey_notes(read, every_id, form, on_error)


def mask_notes(files: Sequence[Path], kind: str) -> tuple[str, ...]:
    """Return a sentence where masks of several kinds are read by one table.

    kind: "index" or "colour", as of `MaskClasses`, or "both". Files that cannot be read are left to
    the decoding.
    """
    kinds: Counter[str] = Counter()
    for i in _sample_files(files):
        try:
            header = read_header(files[i], str(files[i]))
        except DataError:
            continue
        kinds["palette" if header.mode == "P" else "grey" if header.natural == "L" else "RGB"] += 1
    if len(kinds) < 2:
        return ()
    note = ", ".join(f"{count:,} {name}" for name, count in sorted(kinds.items()))
    return (f"Masks are of several kinds ({note}), read by one class table: {_HOW[kind]}.",)


def turned_notes(images: Sequence[Path], masks: Sequence[Path]) -> tuple[str, ...]:
    """Return a sentence where images are turned by their EXIF data and their masks are not.

    images, masks: files, those of one position belonging together. Files that cannot be read are
    left to the decoding.
    """
    places = []
    for i in _sample_files(images):
        try:
            if read_header(images[i], str(images[i])).turned and not (
                read_header(masks[i], str(masks[i])).turned
            ):
                places.append(i)
        except DataError:
            continue
    if not places:
        return ()
    return (
        f"{format_count(len(places), 'image is', 'images are')} turned as the EXIF data say, and "
        f"their masks have no such data, as of {images[places[0]].name}: the masks are taken as "
        "drawn on the image as it is shown, turned.",
    )


def _sample_files(files: Sequence[object]) -> list[int]:
    """Positions evenly spaced, of all files where there are few."""
    count = min(_LOOKED_AT, len(files))
    return sorted({int(i) for i in np.linspace(0, len(files) - 1, count)}) if files else []


def _levels(form: Form) -> str:
    return f"{(form.white or FULL) / 255:.3g}"


def _loses_colour(header: Header, form: Form) -> bool:
    return form.mode == "L" and header.natural == "RGB" and header.mode not in _GREY


def _converts_mode(header: Header, form: Form) -> bool:
    return form.mode == "RGB" and header.mode not in _COLOUR and header.natural == "RGB"


def _repeats_channels(header: Header, form: Form) -> bool:
    return form.mode == "RGB" and (header.natural == "L" or header.mode in _GREY)


def _crops(header: Header, form: Form) -> bool:
    """Whether a centred crop to the shape wanted takes more than a pixel off."""
    if form.size is None:
        return False
    (height, width), (tall, wide) = header.size, form.size
    scale = min(height / tall, width / wide)
    return height - tall * scale > 1 or width - wide * scale > 1


def _enlarges(header: Header, form: Form) -> bool:
    return form.size is not None and any(a < b for a, b in zip(header.size, form.size, strict=True))


_CHANGES = (
    (_loses_colour, "are in colour and brought to grey ({modes}); `data.mode` RGB keeps colours."),
    (_converts_mode, "are converted to RGB without a colour profile ({modes})."),
    (_repeats_channels, "are grey, repeated in three channels ({modes})."),
    (
        lambda header, _: header.deep,
        "hold 16 bits: with {white} as white{white_option}, {levels} of their levels become one.",
    ),
    (
        lambda header, _: header.coded_bits > 8,
        "have more than 8 bits for a colour (AVIF, HEIC), of which the upper 8 are read.",
    ),
    (lambda header, _: header.transparent, "can be transparent in part, and are laid over white."),
    (lambda header, _: header.turned, "are turned as their EXIF data say."),
    (
        lambda header, form: header.wide and form.mode == "RGB",
        "have a colour profile other than sRGB, which is not applied ({modes}).",
    ),
    (
        lambda header, _: header.further,
        "hold further pictures behind the first (MPO), which are not read.",
    ),
    (
        _crops,
        "are of another shape than {size_wanted}: what is beyond a centred crop is cut off.",
    ),
    (_enlarges, "are smaller than {size_wanted}, and enlarged."),
)
