"""Labels that exist already, into a project: a table, COCO's or Label Studio's JSON, or a folder.

A CSV has the columns `id` and `label`; label sets are names with semicolons between, `none` for
none; boxes and masks are JSON, as an export writes them. A folder holds, in folders named as the
classes, files named as the project's images: by their path or, where that names one image alone, by
the name of the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.datasets.coco_json import read_content
from upslope.datasets.layout import LeftOut, images_in
from upslope.errors import DataError
from upslope.files import FORMULA
from upslope.labelling.coco import ImportedLabel, read_coco_labels
from upslope.labelling.exports import NO_LABEL
from upslope.labelling.image_names import ImageNames
from upslope.labelling.label_studio_export import read_label_studio_labels
from upslope.labelling.project import Project
from upslope.labelling.samples import Samples, open_samples
from upslope.labelling.settings import AnswerKind, ProjectSettings

_MOST_NAMES = 5


@dataclass(frozen=True)
class ImportCount:
    """new: labels recorded. corrected: labels of an earlier import that changed. empty: rows
    without a label, which say nothing."""

    new: int
    corrected: int
    empty: int


def import_labels(project: Project, source: Path) -> ImportCount:
    """Record the labels of a file or of a folder per class; all of them, or none.

    source: .json of COCO or Label Studio, a folder, or else a CSV file.

    Raises:
        DataError: nothing there, ids that the project does not have, names that are no classes,
            two labels for one sample.
    """
    settings = project.settings
    samples = open_samples(settings.data, settings.classes, settings.target)
    rows = _read(source, settings, samples)
    project_ids = set(samples.ids)
    if strangers := sorted({id_ for id_, _ in rows} - project_ids):
        raise DataError(
            f"Expected ids of the project in {source} but {len(strangers)} are not, first "
            f"{', '.join(map(repr, strangers[:_MOST_NAMES]))}. Ids are paths inside "
            f"{settings.data}; "
            "nothing was recorded."
        )
    labels: dict[str, str | Sequence[str]] = {}
    empty = 0
    for id_, label in rows:
        if label is None:
            empty += 1
        elif labels.setdefault(id_, label) != label:
            raise DataError(
                f"Expected one label for {id_!r} in {source} but got {labels[id_]!r} and "
                f"{label!r}. Nothing was recorded."
            )
    new, corrections = project.take_in(labels, source.name)
    return ImportCount(new, corrections, empty)


def _read(
    source: Path, settings: ProjectSettings, samples: Samples
) -> list[tuple[str, ImportedLabel]]:
    """(id, label) of whatever the source names."""
    if source.is_dir():
        return _from_folder(source, samples.ids, settings.classes)
    if not source.is_file():
        raise DataError(f"Expected a file of labels or a folder at {source} but there is none.")
    if source.suffix.lower() != ".json":
        return [(id_, _label(text, settings.kind)) for id_, text in _from_csv(source)]
    content = read_content(source, "JSON of COCO or Label Studio")
    if isinstance(content, list):
        return read_label_studio_labels(
            source, content, settings.kind, settings.classes, samples.ids
        )
    return read_coco_labels(source, content, settings.kind, samples)


def _label(text: str, kind: AnswerKind) -> ImportedLabel:
    """The label that a cell of a table says."""
    if not text:
        return None
    if kind != "labels":
        return text
    return [] if text == NO_LABEL else [name.strip() for name in text.split(";")]


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


def _from_folder(
    folder: Path, ids: Sequence[str], classes: Sequence[str]
) -> list[tuple[str, ImportedLabel]]:
    """(id, label) of each image in a folder named as a class."""
    tops = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not tops or (strangers := [name for name in tops if name not in classes]):
        raise DataError(
            f"Expected folders named as the classes {', '.join(classes)} in {folder} but got "
            f"{', '.join(map(repr, strangers[:_MOST_NAMES])) if tops else 'none'}. Nothing was "
            "recorded."
        )
    names = ImageNames(ids)
    rows: list[tuple[str, ImportedLabel]] = []
    for top in tops:
        for path in images_in(folder, folder / top, LeftOut()):
            inner = path.removeprefix(f"{top}/")
            rows.append((names.match([inner, path], folder), top))
    return rows


def _plain(cell: str) -> str:
    """The cell without the apostrophe that an export put before what looks like a formula."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell
