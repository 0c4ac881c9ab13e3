"""The manifest of a folder of images: a CSV file with the columns path, label and perhaps split."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upslope.counts import format_count
from upslope.datasets.decoding import read_text
from upslope.datasets.delimited import cut_delimiter_line
from upslope.datasets.folder_names import split_of
from upslope.datasets.layout import Entry, images_in
from upslope.datasets.left_out import LeftOut, name_some
from upslope.datasets.missing import is_missing, missing_notes
from upslope.errors import DataError
from upslope.reading import is_file, reporting_damage

_DELIMITERS = ",;\t"  # as Excel writes them where the comma is decimal, or on request
_COLUMNS = {"path", "label"}


def read_manifest(
    folder: Path,
    manifest: str,
    missing_labels: Sequence[str] | None = None,
    encoding: str | None = None,
) -> tuple[list[Entry], tuple[str, ...], tuple[str, ...]]:
    """Return the entries of the CSV file `manifest` in `folder`, sentences on images that it does
    not list, and sentences on its labels, splits and other columns.

    Spaces around labels and names of splits are not part of them. missing_labels: words for no
    label. encoding: of the file.

    Raises:
        DataError: no such file, other columns, a row of another length, an image that is missing
            or listed twice, a name that is no split.
        ConfigError: an unknown encoding.
    """
    path = folder / manifest
    if not path.is_file():
        raise DataError(f"Expected the manifest {path} but there is no such file.")
    columns, rows = _rows_of(path, encoding)
    root = folder.absolute().as_posix()
    entries: list[Entry] = []
    said: list[str] = []
    earlier_paths: set[str] = set()
    for line, row in rows:
        where = f"line {line} of {path}"
        id_, label, split = _read_row(row, where, len(columns))
        if not is_file(folder / id_):
            raise DataError(f"Expected the image {folder / id_}, {where}, but it is missing.")
        place = posixpath.relpath(posixpath.join(root, id_), root)  # ./a.jpg is a.jpg
        if place in earlier_paths:
            raise DataError(f"Expected each image once but {id_!r} is listed again, {where}.")
        earlier_paths.add(place)
        said.append(label)
        entries.append((id_, "" if is_missing(label, missing_labels) else label, split))
    if not entries:
        raise DataError(
            f"Expected images with their labels in {path}, one in each line after the first, but "
            "there are none."
        )
    return (
        entries,
        _find_unlisted(folder, manifest, earlier_paths),
        (
            *missing_notes(said, missing_labels, f"images of {manifest}"),
            *_without_split(entries, manifest),
            *_unread(columns, manifest),
        ),
    )


_Row = dict[str | Any, str | Any]
"""The cells of a line by column; those beyond the last column under None."""


def _rows_of(path: Path, encoding: str | None) -> tuple[list[str], list[tuple[int, _Row]]]:
    """Return (names of the columns, (number of the line, cells) of each row) of a manifest."""
    stated_delimiter, text = cut_delimiter_line(read_text(path, encoding))
    cut = int(stated_delimiter is not None)
    delimiters = stated_delimiter or _DELIMITERS
    first, *others = (_header_of(text, delimiter, path) for delimiter in delimiters)
    reader, columns = next((one for one in others if {*one[1]} >= _COLUMNS), first)
    if columns.count("path") != 1 or columns.count("label") != 1:
        raise DataError(
            f"Expected the columns path, label and perhaps split in the first line of {path} "
            f"but got {columns}."
        )
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise DataError(f"Expected each column of {path} once but {twice[0]!r} is there twice.")
    with reporting_damage(f"a CSV file in {path}", "Save it again."):
        return columns, [(reader.line_num + cut, row) for row in reader]


def _header_of(text: str, delimiter: str, path: Path) -> tuple[csv.DictReader[str], list[str]]:
    """(reader of the rows, names of the columns) of a table with this character between cells."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    with reporting_damage(f"a CSV file in {path}", "Save it again."):
        columns = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    return reader, columns


def _read_row(row: _Row, where: str, width: int) -> Entry:
    """Return (path, label as it is written, split) of a row. where, width: its place, and the
    columns.
    """
    if None in row or None in row.values():
        values = [v for v in row.values() if isinstance(v, str)] + list(row.get(None) or [])
        raise DataError(
            f"Expected {width} values, one per column, but got {len(values)}, {where}. "
            "Put values that hold the delimiter in quotes."
        )
    word = (row.get("split") or "").strip()
    split = "" if is_missing(word) else split_of(word)
    if split is None:
        raise DataError(f"Expected the split of {where} to be train, test or val but got {word!r}.")
    return row["path"].replace("\\", "/"), row["label"].strip(), split


def _find_unlisted(folder: Path, manifest: str, paths: set[str]) -> tuple[str, ...]:
    left_out = LeftOut()
    for id_ in images_in(folder, folder, LeftOut()):
        if id_ not in paths:
            left_out.add("image", id_, f" that {manifest} does not list")
    return left_out.notes()


def _unread(columns: Sequence[str], manifest: str) -> tuple[str, ...]:
    others = [name for name in columns if name not in ("path", "label", "split")]
    if not others:
        return ()
    return (f"Left out {format_count(len(others), 'column')} of {manifest}: {name_some(others)}.",)


def _without_split(entries: Sequence[Entry], manifest: str) -> tuple[str, ...]:
    without = sum(not split for _, _, split in entries)
    if not 0 < without < len(entries):
        return ()
    return (f"{without:,} of {len(entries):,} images of {manifest} name no split: in the pool.",)
