"""Labels that exist already, into a project: a CSV file, or a folder per class.

A CSV has the columns `id` and `label`; label sets are names with semicolons between, `none` for
none. A folder holds, in folders named as the classes, files named as the project's images: by their
path or, where that names one image alone, by the name of the file.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.datasets.layout import LeftOut, images_in
from upslope.errors import DataError
from upslope.files import FORMULA
from upslope.labelling.exports import NO_LABEL
from upslope.labelling.project import Project
from upslope.labelling.samples import open_samples

_MOST_NAMES = 5


@dataclass(frozen=True)
class ImportCount:
    """new: labels recorded. corrected: labels of an earlier import that changed. empty: rows
    without a label, which say nothing."""

    new: int
    corrected: int
    empty: int


def import_labels(project: Project, source: Path) -> ImportCount:
    """Record the labels of a CSV file or of a folder per class; all of them, or none.

    Raises:
        DataError: nothing there, ids that the project does not have, names that are no classes,
            two labels for one sample.
    """
    settings = project.settings
    ids = open_samples(settings.data, settings.classes, settings.target).ids
    if source.is_dir():
        rows = _from_folder(source, ids, settings.classes)
    elif source.is_file():
        rows = _from_csv(source)
    else:
        raise DataError(f"Expected a CSV file or a folder at {source} but there is none.")
    project_ids = set(ids)
    if strangers := sorted({id_ for id_, _ in rows} - project_ids):
        raise DataError(
            f"Expected ids of the project in {source} but {len(strangers)} are not, first "
            f"{', '.join(map(repr, strangers[:_MOST_NAMES]))}. Ids are paths inside "
            f"{settings.data}; "
            "nothing was recorded."
        )
    labels: dict[str, str | Sequence[str]] = {}
    texts: dict[str, str] = {}
    empty = 0
    for id_, text in rows:
        if not text:
            empty += 1
            continue
        if texts.setdefault(id_, text) != text:
            raise DataError(
                f"Expected one label for {id_!r} in {source} but got {texts[id_]!r} and {text!r}. "
                "Nothing was recorded."
            )
        if settings.kind == "class":
            labels[id_] = text
        else:
            labels[id_] = [] if text == NO_LABEL else [name.strip() for name in text.split(";")]
    new, corrections = project.take_in(labels, source.name)
    return ImportCount(new, corrections, empty)


def _cells(text: str, delimiter: str, path: Path) -> list[list[str]]:
    """Return the cells of each row.

    Raises:
        DataError: it is no CSV, with a cell beyond the limit of the reader for instance.
    """
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(
            f"Expected {path} to be a CSV file but: {error}. Nothing was recorded."
        ) from error


def _from_csv(path: Path) -> list[tuple[str, str]]:
    """Return the id and the label of each row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected {path} to be a CSV file in UTF-8 but: {error}. Save it again as CSV UTF-8."
        ) from error
    first = text.partition("\n")[0]
    for delimiter in ",;\t":
        header = next(iter(_cells(first, delimiter, path)), [])
        names = [name.strip().lower() for name in header]
        if {"id", "label"} <= set(names):
            break
    else:
        raise DataError(
            f"Expected the columns id and label in the first line of {path} but got "
            f"{first.strip()!r}. Name them so."
        )
    rows = []
    for number, cells in enumerate(
        _cells(text, delimiter, path)[1:], 2
    ):  # as spreadsheets number them
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise DataError(
                f"Expected {len(names)} cells in row {number} of {path} but got {len(cells)}. "
                "Quote cells that hold the delimiter; nothing was recorded."
            )
        row = dict(zip(names, cells, strict=True))
        rows.append((_plain(row["id"]), _plain(row["label"].strip())))
    return rows


def _from_folder(folder: Path, ids: Sequence[str], classes: Sequence[str]) -> list[tuple[str, str]]:
    """(id, label) of each image in a folder named as a class."""
    tops = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not tops or (strangers := [name for name in tops if name not in classes]):
        raise DataError(
            f"Expected folders named as the classes {', '.join(classes)} in {folder} but got "
            f"{', '.join(map(repr, strangers[:_MOST_NAMES])) if tops else 'none'}. Nothing was "
            "recorded."
        )
    by_name: Mapping[str, list[str]] = defaultdict(list)
    for id_ in ids:
        by_name[Path(id_).name].append(id_)
    project_ids = set(ids)
    rows = []
    for top in tops:
        for path in images_in(folder, folder / top, LeftOut()):
            inner = path.removeprefix(f"{top}/")
            alike = by_name.get(Path(inner).name, [])
            exact = next((id_ for id_ in (inner, path) if id_ in project_ids), None)
            if exact is None and len(alike) > 1:
                raise DataError(
                    f"Expected {path} of {folder} to name one image but {len(alike)} have that "
                    f"name, first {alike[0]!r}. Lay the files out as the images are; nothing was "
                    "recorded."
                )
            rows.append((exact or (alike[0] if alike else inner), top))
    return rows


def _plain(cell: str) -> str:
    """The cell without the apostrophe that an export put before what looks like a formula."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell
