"""Labels that exist already, into a project: a table, COCO's or Label Studio's JSON, or a folder.

A CSV has the columns `id` and `label`; label sets are names with semicolons between, `none` for
none; boxes and masks are JSON, as an export writes them. A folder holds, in folders named as the
classes, files named as the project's images: by their path or, where that names one image alone, by
the name of the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.datasets.coco_json import read_content
from upslope.datasets.layout import (
    UNLABELLED,
    LeftOut,
    images_in,
    is_hidden,
    is_image,
    leave,
)
from upslope.errors import DataError
from upslope.files import plain_cell
from upslope.images import read_header
from upslope.labelling.coco import ImportedLabel, read_coco_labels
from upslope.labelling.exports import NO_LABEL
from upslope.labelling.image_names import ImageNames
from upslope.labelling.label_studio_export import read_label_studio_labels
from upslope.labelling.people import merge_answers
from upslope.labelling.project import Project
from upslope.labelling.samples import BUILT_IN, FolderImages, Samples, samples_of
from upslope.labelling.settings import OUTLINES, AnswerKind, ProjectSettings

_MOST_NAMES, _MOST_PROBLEMS = 5, 3


@dataclass(frozen=True)
class ImportCount:
    """new: labels recorded. corrected: labels of an earlier import that changed. empty: rows
    without a label, which say nothing. differing: ids of samples for which other answers count,
    given before. notes: sentences on what was left out."""

    new: int
    corrected: int
    empty: int
    differing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def import_labels(project: Project, source: Path) -> ImportCount:
    """Record the labels of a file or of a folder per class; all of them, or none.

    source: .json of COCO or Label Studio, a folder, or else a CSV file.

    Raises:
        DataError: nothing there, ids that the project does not have, names that are no classes,
            two labels for one sample, two names for one image, outlines of another size than the
            image.
    """
    settings = project.settings
    samples = samples_of(settings)
    left_out = LeftOut()
    rows = _read(source, settings, samples, left_out)
    project_ids = set(samples.ids)
    if strangers := sorted({id_ for id_, _ in rows} - project_ids):
        raise DataError(
            f"Expected ids of the project in {source} but {len(strangers)} are not, first "
            f"{', '.join(map(repr, strangers[:_MOST_NAMES]))}. Ids are paths inside "
            f"{settings.data}; "
            "nothing was recorded."
        )
    labels = _checked_labels(project, source, rows)
    if isinstance(samples, FolderImages) and settings.kind in OUTLINES:
        _check_sizes(samples, {id_: str(label) for id_, label in labels.items()}, source)
    new, corrections = project.take_in(labels, source.name)
    labels_that_count = merge_answers(project.state, settings.classes)
    differing = [i for i, label in labels.items() if labels_that_count[i] != project.label(label)]
    empty = sum(label is None for _, label in rows)
    return ImportCount(new, corrections, empty, tuple(differing), left_out.notes())


def take_data_labels(project: Project, samples: Samples) -> int:
    """Record the labels that the data have themselves; return how many are new or changed.

    Classes of images say nothing where boxes or masks are asked for.
    """
    kind = project.settings.kind
    if kind in OUTLINES:
        return 0
    labels = {i: [n] if kind == "labels" else n for i, n in samples.labels.items()}
    return sum(project.take_in(labels, "the data"))


def move_data(project: Project, data: str) -> tuple[int, list[str]]:
    """Record where the data of a project lie now; return how many samples there are, and the
    answered ones that are not among them.

    data: a folder or a file.

    Raises:
        DataError: nothing of that name, or none of the samples that were answered.
    """
    settings = project.settings
    place = data if data in BUILT_IN else str(Path(data).expanduser().absolute())
    samples = samples_of(settings, place)
    absent = sorted(set(project.state.answers) - set(samples.ids))
    if absent and len(absent) == len(project.state.answers):
        raise DataError(
            f"Expected the samples of the project in {place} but none of the {len(absent):,} "
            f"answered ones is there, first {absent[0]!r}. Check the path."
        )
    project.move(place)
    return len(samples.ids), absent


def _checked_labels(
    project: Project, source: Path, rows: Sequence[tuple[str, ImportedLabel]]
) -> dict[str, str | Sequence[str]]:
    """Return id -> label of the rows that have one, each of which the project can hold.

    Raises:
        DataError: labels that are none of the project's; two for one sample.
    """
    labels: dict[str, str | Sequence[str]] = {}
    problems = []
    for id_, label in rows:
        if label is None:
            continue
        try:
            value = project.label(label)
        except DataError as error:
            problems.append(f"{id_!r}: {error}")
            continue
        if project.label(labels.setdefault(id_, label)) != value:
            raise DataError(
                f"Expected one label for {id_!r} in {source} but got {labels[id_]!r} and "
                f"{label!r}. Nothing was recorded."
            )
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise DataError(
            f"Expected labels of the project in {source} but {len(problems):,} are not: "
            f"{' '.join(problems[:_MOST_PROBLEMS])}{f' And {more:,} more.' if more > 0 else ''} "
            "Nothing was recorded."
        )
    return labels


def _check_sizes(samples: FolderImages, outlines: Mapping[str, str], source: Path) -> None:
    """Raise DataError where an image, turned as people see it, has another size than its outlines
    are for."""
    for id_, text in outlines.items():
        file = samples.root / id_
        height, width = json.loads(text)["size"]
        size = read_header(file, str(file)).size
        if size != (height, width):
            raise DataError(
                f"Expected {file} to have (height, width) = {(height, width)}, as {source} states, "
                f"but it has {size}. Nothing was recorded."
            )


def _read(
    source: Path, settings: ProjectSettings, samples: Samples, left_out: LeftOut
) -> list[tuple[str, ImportedLabel]]:
    """(id, label) of whatever the source names. left_out: counts files that are not read."""
    if source.is_dir():
        return _from_folder(source, samples.ids, settings, left_out)
    if not source.is_file():
        raise DataError(f"Expected a file of labels or a folder at {source} but there is none.")
    if source.suffix.lower() != ".json":
        names = ImageNames(samples.ids if samples.kind == "image" else ())
        return [
            (names.match([id_], source), _label(text, settings.kind))
            for id_, text in _from_csv(source)
        ]
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
    if twice := [name for name in ("id", "label") if names.count(name) > 1]:
        raise DataError(
            f"Expected one column {twice[0]} in {path} but got {names.count(twice[0])}. Rename "
            "those that are not meant; nothing was recorded."
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
        rows.append((plain_cell(row["id"]), plain_cell(row["label"].strip())))
    return rows


def _from_folder(
    folder: Path, ids: Sequence[str], settings: ProjectSettings, left_out: LeftOut
) -> list[tuple[str, ImportedLabel]]:
    """(id, label) of each image in a folder named as a class; of sets, the classes of its folders.

    left_out: counts what is no image, or lies in no folder of a class.
    """
    classes = settings.classes
    if settings.kind in OUTLINES:
        raise DataError(
            f"Expected {settings.kind} for this project but folders of classes, as {folder}, have "
            "none. Give .json (COCO, Label Studio) or a .csv."
        )
    entries = sorted(folder.iterdir())
    tops = [e.name for e in entries if e.is_dir() and (e.name in classes or not is_hidden(e.name))]
    for entry in entries:
        if entry.name in tops:
            continue
        if is_image(entry.name):
            left_out.add("image", entry.name, " in no folder of a class")
        else:
            leave(entry.name, entry.name, left_out)
    usable_names = {*classes, *UNLABELLED}
    if not tops or (strangers := [name for name in tops if name not in usable_names]):
        raise DataError(
            f"Expected folders named as the classes {', '.join(classes)} in {folder} but got "
            f"{', '.join(map(repr, strangers[:_MOST_NAMES])) if tops else 'none'}. Nothing was "
            "recorded."
        )
    names = ImageNames(ids)
    rows: list[tuple[str, ImportedLabel]] = []
    sets: dict[str, list[str]] = {}
    for top in tops:
        for path in images_in(folder, folder / top, left_out):
            id_ = names.match([path.removeprefix(f"{top}/"), path], folder)
            label = top if top in classes else None
            if settings.kind == "labels" and label is not None:
                sets.setdefault(id_, []).append(label)
            else:
                rows.append((id_, label))
    return [*rows, *sets.items()]
