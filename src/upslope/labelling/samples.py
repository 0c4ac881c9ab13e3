"""Samples as people see them: images of a folder or of a data set, texts, or rows of a table.

    samples = open_samples("photos", ("cat", "dog"))
    samples.picture(0)               # what the page shows of the first sample

Nothing is decoded when samples are opened, so that the page is there at once.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from upslope.datasets.argument_names import as_command_options, options_as_command_options
from upslope.datasets.base import Dataset
from upslope.datasets.class_labels import read_classes
from upslope.datasets.image_form import white_level
from upslope.datasets.layout import by_class, images_in, no_images
from upslope.datasets.left_out import LeftOut
from upslope.datasets.paths import refuse_empty_path
from upslope.datasets.rows import SUFFIXES as TABLE_SUFFIXES
from upslope.datasets.rows import read_rows
from upslope.datasets.similar_names import similar_id_notes
from upslope.datasets.unlabelled import (
    USUAL,
    is_flat,
    misspelt_class_notes,
    row_contents,
)
from upslope.errors import DataError
from upslope.image_depth import FULL
from upslope.image_formats import HEIC_SUFFIXES, reads_heic
from upslope.images import Form, Pixels, decode, read_header
from upslope.labelling.settings import AS_FILES_SAY, ProjectSettings, ReadingOptions
from upslope.reading import check_regular, is_file, limited_to

Kind = Literal["image", "text", "row"]

_JPEG, _PNG = "image/jpeg", "image/png"
_BEGINNINGS = {
    b"\xff\xd8\xff": _JPEG,
    b"\x89PNG\r\n\x1a\n": _PNG,
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
"""How files begin that are sent as they are, with their media types; others are converted. Names do
not tell: phones hand on HEIC pictures that are called .jpg, which no browser shows."""
_HEAD = 12  # bytes of a file that tell its kind
BUILT_IN = ("digits",)
"""Data sets that need no file, to try the page with; their labels are not used."""


@dataclass(frozen=True)
class Picture:
    """An encoded image. media_type: as HTTP names it."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class FolderImages:
    """Images of a folder; ids are paths relative to `root`.

    labels: id -> name of a class, of images in folders that are named so. notes: sentences about
    what was left out. reading: how the files are read.
    """

    root: Path
    ids: tuple[str, ...]
    labels: Mapping[str, str]
    notes: tuple[str, ...]
    kind: Kind = "image"
    reading: ReadingOptions = AS_FILES_SAY

    def picture(self, position: int) -> Picture:
        """Return the file as it is, or converted where browsers do not show its kind as it is."""
        path = self._path(position)
        head = _read(path, _HEAD)
        if media_type := self._type_shown(path, head):
            return Picture(_read(path), media_type)
        pixels = self._decode(path, None).transpose(1, 2, 0)
        if head[4:8] == b"ftyp":  # HEIC and AVIF: photographs, which would be huge as PNG
            return Picture(_encode(pixels, "JPEG"), _JPEG)
        return Picture(_encode(pixels, "PNG"), _PNG)

    def file_shown(self, position: int) -> Path | None:
        """Return the file of a sample where browsers show it as it is, None where they do not."""
        path = self._path(position)
        return path if self._type_shown(path, _read(path, _HEAD)) else None

    def _type_shown(self, path: Path, head: bytes) -> str:
        """The media type of a file that browsers show as it is, "" of others. head: its start."""
        media_type = _media_type(head)
        # Of levels up to 4095 in 16 bits, browsers would show near black.
        has_other_white = media_type == _PNG and self.reading.white not in (None, FULL)
        return "" if has_other_white and read_header(path, str(path)).deep else media_type

    def pixels(self, position: int, size: int) -> Pixels:
        """Return the image, its centre cropped to a square, (3, size, size) uint8."""
        return self._decode(self._path(position), (size, size))

    def _decode(self, path: Path, size: tuple[int, int] | None) -> Pixels:
        with options_as_command_options(), limited_to(self.reading.read_limit):
            return decode(path, str(path), Form("RGB", size, self.reading.white))

    def white(self) -> int | None:
        """Return the level of 16-bit images that is white, as data set `folder` decides it: the
        full range where it is used. None where none of the images looked at holds 16 bits.

        Raises:
            DataError: levels that stay in the lower half of the range; the message names `--white`.
        """
        with options_as_command_options(), limited_to(self.reading.read_limit):
            return white_level(lambda i: self.root / self.ids[i], self.ids, self.reading.white)

    def _path(self, position: int) -> Path:
        """The file of a sample; a link that leads out of the folder is refused."""
        path = self.root / self.ids[position]
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(
                f"Expected {path} to lie in {self.root} but it is a link to {path.resolve()}. "
                "Put the file itself there."
            )
        return path


@dataclass(frozen=True)
class DatasetImages:
    """Images of a data set in memory, whose labels are not shown to anybody."""

    dataset: Dataset
    kind: Kind = "image"
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> Sequence[str]:
        """Return the ids of the data set."""
        return self.dataset.ids

    def picture(self, position: int) -> Picture:
        """Return the image of a sample as PNG."""
        pixels = self.dataset.inputs([position])[0].numpy()
        return Picture(
            _encode(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0), "PNG"),
            "image/png",
        )

    def pixels(self, position: int, size: int) -> Pixels:
        """Return the image, (3, size, size) uint8."""
        return decode(self.picture(position).data, self.ids[position], Form("RGB", (size, size)))


@dataclass(frozen=True)
class TableRows:
    """Rows of a table, or its texts where one column is all that there is to see.

    cells: one mapping per sample, column -> text.
    """

    ids: tuple[str, ...]
    cells: tuple[Mapping[str, str], ...]
    labels: Mapping[str, str]
    notes: tuple[str, ...]
    kind: Kind

    def content(self, position: int) -> Mapping[str, str]:
        """Return the cells of a row, column -> text."""
        return self.cells[position]


ImageSamples = FolderImages | DatasetImages
Samples = ImageSamples | TableRows


def samples_of(settings: ProjectSettings, data: str | None = None) -> Samples:
    """Open the samples of a project.

    data: where they lie, where that is elsewhere than its settings say.

    Raises:
        ConfigError, DataError: as `open_samples`.
    """
    place = settings.data if data is None else data
    return open_samples(place, settings.classes, settings.target, settings.reading)


def open_samples(
    data: str,
    classes: Sequence[str],
    target: str | None = None,
    reading: ReadingOptions = AS_FILES_SAY,
) -> Samples:
    """Open what is to be labelled.

    data: a folder of images, a table or texts in one file, or a name of `BUILT_IN`. classes: their
    names. target: the column of labels of a table; label, class or target where not given. reading:
    how the files are read.

    Raises:
        ConfigError: options that do not fit the files.
        DataError: nothing of that name, no sample in it, or labels that are no classes.
    """
    refuse_empty_path(data, "the data")
    path = Path(data).expanduser()
    with options_as_command_options(), limited_to(reading.read_limit):
        if path.is_dir():
            return _folder(path.absolute(), classes, reading)
        if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
            return _table(path.absolute(), classes, target, reading)
    if data in BUILT_IN:
        from upslope import datasets

        return DatasetImages(datasets.load(data).pool)
    raise DataError(
        f"Expected a folder of images, a file ({', '.join(TABLE_SUFFIXES)}) or one of "
        f"{', '.join(BUILT_IN)} to label but got {data!r}. Check the path; where the data of a "
        "project were moved, say where to: upslope label move PROJECT DATA."
    )


def absolute_place(data: str) -> str:
    """Return the absolute path of data to label; a name of `BUILT_IN` as it is.

    Raises:
        ConfigError: an empty text.
    """
    refuse_empty_path(data, "the data")
    return data if data in BUILT_IN else str(Path(data).expanduser().absolute())


def open_images(folder: str, reading: ReadingOptions = AS_FILES_SAY) -> FolderImages:
    """Open all images of a folder, at any depth, whatever its folders are called.

    Raises:
        DataError: no such folder, or no image in it.
    """
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"Expected a folder of images but there is none at {folder!r}.")
    left_out = LeftOut()
    return _images(root, images_in(root, root, left_out), {}, left_out, reading)


def _folder(root: Path, classes: Sequence[str], reading: ReadingOptions) -> FolderImages:
    left_out = LeftOut()
    notes: tuple[str, ...] = ()
    if is_flat(root, classes):
        ids = images_in(root, root, left_out)
        labels: dict[str, str] = {}
        notes = misspelt_class_notes(root, classes)
    else:
        entries = by_class(root, reading.layout, left_out)
        for id_, _, split in entries:
            if split not in ("", "train"):
                left_out.add(f"images of the split {split}, which nobody is asked for", id_)
        pool_entries = [(id_, name) for id_, name, split in entries if split in ("", "train")]
        ids = [id_ for id_, _ in pool_entries]
        labels = {id_: name for id_, name in pool_entries if name}
    _refuse_strangers(labels, classes, root)
    return _images(root, ids, labels, left_out, reading, notes)


def _images(
    root: Path,
    ids: Sequence[str],
    labels: Mapping[str, str],
    left_out: LeftOut,
    reading: ReadingOptions,
    further_notes: Sequence[str] = (),
) -> FolderImages:
    """The images of a folder but for links to elsewhere, with notes on what was left out."""
    ids = [id_ for id_ in ids if not _leads_elsewhere(root, id_, left_out)]
    labels = {id_: labels[id_] for id_ in ids if id_ in labels}
    if not ids:
        raise no_images(root, left_out)
    notes = tuple(map(as_command_options, left_out.notes()))
    notes = (*notes, *further_notes, *similar_id_notes(ids))
    if not reads_heic() and any(suffix in note for note in notes for suffix in HEIC_SUFFIXES):
        notes = (
            *notes,
            "HEIC pictures are read with pillow-heif: pip install '.[label]'",
        )
    return FolderImages(root, tuple(ids), labels, notes, reading=reading)


def _leads_elsewhere(root: Path, id_: str, left_out: LeftOut) -> bool:
    """Tell, and count, whether an image is a link to no file inside the folder."""
    path = root / id_
    if not path.is_symlink() or (is_file(path) and path.resolve().is_relative_to(root.resolve())):
        return False
    left_out.add("link", id_, " to no file inside the folder")
    return True


def _table(
    path: Path, classes: Sequence[str], target: str | None, reading: ReadingOptions
) -> TableRows:
    rows = read_rows(path, reading.id, encoding=reading.encoding, delimiter=reading.delimiter)
    columns = rows.table.column_names
    column = target or next((name for name in USUAL if name in columns), None)
    labels: dict[str, str] = {}
    notes = rows.notes
    if column is not None:
        names, values, label_notes = read_classes(
            rows.column(column, "target"), f"classes in the column `{column}` of {path}", None,
            class_list=list(classes),
        )  # fmt: skip
        notes = (*notes, *label_notes)
        labels = {
            id_: names[value] for id_, value in zip(rows.ids, values, strict=True) if value >= 0
        }
    by_id = row_contents(path, {**asdict(reading), "target": target})
    cells = tuple(by_id[id_] for id_ in rows.ids)
    if not cells or not cells[0]:
        raise DataError(
            f"Expected rows with something to see in {path} but there are none. Check the file."
        )
    kind: Kind = "text" if len(cells[0]) == 1 else "row"
    return TableRows(rows.ids, cells, labels, tuple(map(as_command_options, notes)), kind)


def _refuse_strangers(labels: Mapping[str, str], classes: Sequence[str], root: Path) -> None:
    if strangers := sorted(set(labels.values()) - set(classes)):
        raise DataError(
            f"Expected folders named as the classes {', '.join(classes)} in {root} but got "
            f"{', '.join(map(repr, strangers[:5]))}. Name these classes too, or give a folder in "
            "which no folder is named as a class: then nothing in it has a label."
        )


def _read(path: Path, count: int = -1) -> bytes:
    """The first bytes of a plain file, or all of them. Raises DataError."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError) as error:
        raise DataError(
            f"Expected to be able to read {path} but got: {error}. Restore the file."
        ) from error


def _media_type(head: bytes) -> str:
    """The media type by the first bytes of a file; "" where browsers do not show its kind."""
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _BEGINNINGS.items() if head.startswith(start)), "")


def _encode(pixels: NDArray[np.generic], format_: str) -> bytes:
    """The bytes of an image file. pixels: (h, w) or (h, w, 3) uint8. format_: PNG or JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format_, quality=95)
    return buffer.getvalue()
