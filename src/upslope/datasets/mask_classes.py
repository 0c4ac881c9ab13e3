"""Classes of mask files: which number or colour stands for which class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from upslope.datasets.decoding import read_text
from upslope.datasets.delimited import cut_delimiter_line
from upslope.errors import DataError
from upslope.image_depth import is_deep_colour
from upslope.images import (
    Form,
    check_pixels,
    load_whole,
    open_image,
    read_header,
)
from upslope.mask_files import (
    Storage,
    check_lossless,
    class_numbers,
    storage_of,
    without_full_alpha,
)
from upslope.reading import reporting_damage

IGNORE = 255
"""In every mask that our data sets give: a pixel that counts nowhere."""

_ID, _COLOURS = ("id",), ("red", "green", "blue")
_NO_CLASS = 254
_NO_CLASS_NAMES = (
    "ignore", "ignored", "ignore_index", "void", "don't care", "dontcare", "unlabeled",
    "unlabelled",
)  # fmt: skip

Mask = NDArray[np.uint8]
_Row = dict[str | Any, str | Any]
"""The cells of a line by column; those beyond the last column under None."""


@dataclass(frozen=True, eq=False)
class MaskClasses:
    """The classes, and a table from a file's value to their number, `IGNORE`, or neither.

    kind: "index", of grey or palette masks up to 16 bits; "colour", of RGB masks, where a value is
    red << 16 | green << 8 | blue. by_colour: the same classes by colour, where the class table of
    an "index" has both.
    """

    classes: tuple[str, ...]
    kind: Literal["index", "colour"]
    table: Mask
    by_colour: MaskClasses | None = None

    @classmethod
    def of(
        cls, classes: tuple[str, ...], kind: Literal["index", "colour"], values: Mapping[int, int]
    ) -> MaskClasses:
        """values: file value -> position in `classes`, or `IGNORE`.

        Raises:
            DataError: fewer than two classes, or more than 254.
        """
        if not 2 <= len(classes) <= _NO_CLASS:
            raise DataError(f"Expected 2 to {_NO_CLASS} classes of pixels but got {len(classes)}.")
        table = np.full(2**24 if kind == "colour" else 2**16, _NO_CLASS, dtype=np.uint8)
        for value, number in values.items():
            table[value] = number
        return cls(classes, kind, table)

    def read(self, path: Path, image: Path, form: Form) -> Mask:
        """(h, w) uint8: the classes in the mask at `path`, which belongs to `image`.

        Another size is reached as for images (see `images.decode`), by the nearest pixel.

        Raises:
            DataError: the mask cannot be decoded, is of another kind or of another size than its
                image, or holds values that stand for nothing.
        """
        with open_image(path, f"a mask in {path}", "Repair or remove it.") as mask_image:
            check_lossless(mask_image, path)
            if is_deep_colour(mask_image):
                raise ValueError(
                    "it has colours of more than 8 bits, of which the upper 8 alone can be read; "
                    "save it with 8 bits"
                )
            storage = storage_of(mask_image)
            check_pixels(mask_image, path, form.most)
            load_whole(mask_image)
            mask = without_full_alpha(ImageOps.exif_transpose(mask_image))
            size = (mask.height, mask.width)
            _same_size(path, size, image)
            if form.size is not None and form.size != size:
                mask = ImageOps.fit(mask, form.size[::-1], Image.Resampling.NEAREST)
            if self.by_colour is None or mask.mode not in ("RGB", "P"):
                return self._look_up(mask, storage, path)
            if mask.mode == "RGB":
                return self.by_colour._look_up(mask, storage, path)
            return self._look_up_either(mask, path)

    def _look_up_either(self, mask: Image.Image, path: Path) -> Mask:
        """The classes of a palette mask, by its numbers or its colours, whichever all stand for
        something. Raises DataError where both do and differ."""
        assert self.by_colour is not None
        readings, errors = [], []
        for classes in (self, self.by_colour):
            try:
                readings.append(classes._look_up(mask, Storage(), path))
            except DataError as error:
                errors.append(error)
        if not readings:
            raise errors[0]
        if (differ := readings[0] != readings[-1]).any():
            row, column = (int(i[0]) for i in np.nonzero(differ))
            raise DataError(
                f"Expected the palette of {path} to have the colours of the class table but row "
                f"{row}, column {column} is of another class by number than by colour. Remove the "
                "columns of the class table that are not meant."
            )
        return readings[0]

    def _look_up(self, mask: Image.Image, storage: Storage, path: Path) -> Mask:
        """(h, w): the classes of a decoded mask. storage: as `storage_of` gave it."""
        values = self._values(mask, storage, path)
        classes: Mask = self.table[values]
        absent = classes == _NO_CLASS
        if absent.any():
            values_there = [self._value_words(v) for v in np.unique(values[absent])[:4].tolist()]
            raise DataError(
                f"Expected values of the {len(self.classes)} classes, or ignored ones, in {path} "
                f"but got {', '.join(values_there)} at {int(absent.sum())} of {absent.size} "
                "pixels. Add them to the class table, or repair the mask."
            )
        return classes

    def _values(self, mask: Image.Image, storage: Storage, path: Path) -> NDArray[np.int32]:
        grey = mask.mode in ("1", "P", "L", "I") or mask.mode.startswith("I;16")
        if grey and self.kind == "index":
            values = class_numbers(mask, storage, self._stand_for_something, path)
            if values.min() < 0 or values.max() >= 2**16:
                raise ValueError(f"it holds {values.min()} to {values.max()}, beyond 16 bits")
            return values
        if mask.mode in ("RGB", "P") and self.kind == "colour":
            rgb = np.asarray(mask.convert("RGB")).astype(np.int32)
            return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
        form = "indices (grey or palette)" if self.kind == "index" else "colours (RGB or palette)"
        raise DataError(
            f"Expected {form} in the mask {path}, as the class table has them, but its mode is "
            f"{mask.mode}. Convert the mask, or give the table the other columns."
        )

    def _stand_for_something(self, values: NDArray[np.int32]) -> NDArray[np.bool_]:
        inside = (values >= 0) & (values < len(self.table))
        return np.asarray(inside & (self.table[np.where(inside, values, 0)] != _NO_CLASS))

    def _value_words(self, value: int) -> str:
        if self.kind == "index":
            return str(value)
        return f"({value >> 16}, {value >> 8 & 255}, {value & 255})"


def read_mask_classes(path: Path, encoding: str | None = None) -> MaskClasses:
    """Return the class table of a CSV file: `name` with `id`, with `red`, `green` and `blue`, or
    with both.

    Lines of one name are one class, in the order in which names first occur; the name `ignore` is
    for pixels that count nowhere. encoding: as for `decoding.read_text`.

    Raises:
        ConfigError: an encoding that does not exist.
        DataError: no such file, one that is not text in that encoding, other columns, values that
            are no numbers in range or occur twice.
    """
    if not path.is_file():
        raise DataError(
            f"Expected the class table {path} but there is no such file. Write one line per class "
            "under the columns name,id or name,red,green,blue; the name ignore is for pixels that "
            "count nowhere."
        )
    header, rows = _table_rows(path, encoding)
    by_id, by_colour = (
        _classes_by(keys, header, rows, path) if has_values else None
        for keys, has_values in zip((_ID, _COLOURS), _value_columns(header, path), strict=True)
    )
    if by_id is None:
        assert by_colour is not None  # `_value_columns` has refused a table with neither
        return by_colour
    return replace(by_id, by_colour=by_colour)


def _classes_by(
    keys: Sequence[str], header: Sequence[str], rows: Sequence[tuple[int, _Row]], path: Path
) -> MaskClasses:
    """The classes of a table by the value in these columns."""
    names: dict[str, int] = {}
    values: dict[int, int] = {}
    for line, row in rows:
        name, value = _class_of_row(row, keys, f"line {line} of {path}", len(header))
        number = IGNORE if name == "ignore" else names.setdefault(name, len(names))
        if values.setdefault(value, number) != number:
            numbers = ", ".join((row[key] or "").strip() for key in keys)
            raise DataError(
                f"Expected one class for each value in {path} but {numbers} is there again, line "
                f"{line}."
            )
    return MaskClasses.of(tuple(names), "colour" if keys == _COLOURS else "index", values)


def _table_rows(path: Path, encoding: str | None) -> tuple[list[str], list[tuple[int, _Row]]]:
    """(names of the columns, (number of the line, cells) of each row) of a class table."""
    stated_delimiter, text = cut_delimiter_line(read_text(path, encoding))
    cut = int(stated_delimiter is not None)
    semicolons = ";" in text.partition("\n")[0]  # as Excel writes where the comma is decimal
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter=stated_delimiter or (";" if semicolons else ","),
        skipinitialspace=True,
        strict=True,
    )
    with reporting_damage(f"a class table in {path}", "Save it again as CSV."):
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        return header, [(reader.line_num + cut, row) for row in reader]


def _value_columns(header: Sequence[str], path: Path) -> tuple[bool, bool]:
    """Whether a table has the numbers of classes, and their colours."""
    has_ids, has_colours = {*_ID} <= {*header}, {*_COLOURS} <= {*header}
    if "name" not in header or not (has_ids or has_colours):
        raise DataError(
            f"Expected the columns name,id or name,red,green,blue in {path} but got "
            f"{','.join(header)}."
        )
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"Expected each column of {path} once but {twice[0]!r} is there twice.")
    return has_ids, has_colours


def _class_of_row(row: _Row, keys: Sequence[str], where: str, width: int) -> tuple[str, int]:
    """(name of the class, value in masks) of a row. where, width: its place, and the columns."""
    name, numbers = (row["name"] or "").strip(), [(row[key] or "").strip() for key in keys]
    if None in row:
        raise DataError(
            f"Expected {width} cells in {where} but got more. Put double quotes around a name that "
            "holds the delimiter."
        )
    top = 255 if len(keys) == 3 else 2**16 - 1
    if not name or not all(_in_range(n, top) for n in numbers):
        raise DataError(
            f"Expected a name and {', '.join(keys)} between 0 and {top} in {where} but got "
            f"{name!r} and {', '.join(numbers)!r}."
        )
    value = 0
    for number in numbers:  # one, or three of 8 bits
        value = value << 8 | int(number)
    return name, value


def ignored_class_notes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return sentences on classes whose name is as likely to mean pixels that count nowhere."""
    return tuple(
        f"The class {name!r} counts as the others do. If it stands for pixels that count nowhere, "
        "call it ignore in the class table."
        for name in classes
        if name.casefold() in _NO_CLASS_NAMES
    )


def _in_range(number: str, top: int) -> bool:
    short = len(number.lstrip("0")) <= len(str(top))  # int refuses thousands of digits
    return number.isdecimal() and short and int(number) <= top


def _same_size(path: Path, size: tuple[int, int], image: Path) -> None:
    height, width = read_header(image, str(image)).size
    if size != (height, width):
        raise DataError(
            f"Expected the mask {path} to be of the size of its image {image}, {height} rows of "
            f"{width} pixels, but got {size[0]} rows of {size[1]}. Export it again at full size."
        )
