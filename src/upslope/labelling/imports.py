"""Labels that exist already, into a project: a table, COCO's or Label Studio's JSON, or a folder.

A CSV has the columns `id` and `label` (`imported_labels`). A folder holds, in folders named as the
classes, files named as the project's images: by their path or, where that names one image alone, by
the name of the file; or images and masks, as an export of masks writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.counts import format_count
from upslope.datasets.coco_json import read_content
from upslope.datasets.layout import (
    UNLABELLED,
    images_in,
    is_hidden,
    is_image,
    leave,
)
from upslope.datasets.left_out import LeftOut
from upslope.errors import DataError
from upslope.labelling.coco import read_coco_labels
from upslope.labelling.contents import content_of
from upslope.labelling.image_names import ImageNames
from upslope.labelling.imported_labels import ImportedLabel, label_in_cell, read_label_table
from upslope.labelling.label_studio_export import read_label_studio_labels
from upslope.labelling.mask_folders import CLASS_TABLE, read_mask_folder
from upslope.labelling.outline_sizes import size_problem
from upslope.labelling.people import merge_answers
from upslope.labelling.project import Project
from upslope.labelling.samples import Samples, absolute_place, samples_of
from upslope.labelling.settings import OUTLINES, ProjectSettings
from upslope.labelling.state import Pass

DATA_SOURCE = "the data"
"""The source of the labels that the data have themselves."""
_MOST_NAMES, _MOST_PROBLEMS = 5, 3


@dataclass(frozen=True)
class ImportCount:
    """new: labels recorded, without skips. corrected: answers of an earlier import that changed.
    empty: rows that say nothing. passed: how many of the samples in the source were skipped or
    could not be told, and have no label. differing: ids of samples for which other answers count,
    given before. notes: sentences on what was left out."""

    new: int
    corrected: int
    empty: int
    passed: int = 0
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
    rows = _read(source, project, samples, left_out)
    project_ids = set(samples.ids)
    if strangers := sorted({id_ for id_, _ in rows} - project_ids):
        raise DataError(
            f"Expected ids of the project in {source} but got "
            f"{format_count(len(strangers), 'other')}, first "
            f"{', '.join(map(repr, strangers[:_MOST_NAMES]))}. Ids are paths inside "
            f"{settings.data}; "
            "nothing was recorded."
        )
    labels = _checked_labels(project, source, rows)
    if settings.kind in OUTLINES:
        _check_sizes(samples, labels, source)
    # A source that is called as the data's own labels are recorded would be taken for these.
    name = source.name if source.name != DATA_SOURCE else f"./{source.name}"
    places = {id_: i for i, id_ in enumerate(samples.ids)}
    contents = {id_: content_of(samples, places[id_]) for id_ in labels}
    new, corrections = project.take_in(labels, name, contents)
    labels_that_count = merge_answers(project.state, settings.classes)
    differing = [
        id_
        for id_, label in labels.items()
        if not isinstance(label, Pass) and labels_that_count.get(id_) != project.label(label)
    ]
    empty = sum(label is None for _, label in rows)
    pass_count = sum(isinstance(label, Pass) for label in labels.values())
    return ImportCount(new, corrections, empty, pass_count, tuple(differing), left_out.notes())


def take_data_labels(project: Project, samples: Samples) -> int:
    """Record the labels that the data have themselves; return how many are new or changed.

    Classes of images say nothing where boxes or masks are asked for.
    """
    kind = project.settings.kind
    if kind in OUTLINES:
        return 0
    labels = {i: [n] if kind == "labels" else n for i, n in samples.labels.items()}
    return sum(project.take_in(labels, DATA_SOURCE))


def answered_but_absent(project: Project, samples: Samples) -> list[str]:
    """Return the ids that were answered and are not among the samples any more, in order."""
    return sorted(set(project.state.answers) - set(samples.ids))


def move_data(project: Project, data: str) -> tuple[int, list[str]]:
    """Record where the data of a project lie now; return how many samples there are, and the
    answered ones that are not among them.

    data: a folder or a file.

    Raises:
        DataError: nothing of that name, or none of the samples that were answered.
    """
    settings = project.settings
    place = absolute_place(data)
    samples = samples_of(settings, place)
    absent = answered_but_absent(project, samples)
    if absent and len(absent) == len(project.state.answers):
        raise DataError(
            f"Expected the samples of the project in {place} but none of the {len(absent):,} "
            f"answered ones is there, first {absent[0]!r}. Check the path."
        )
    project.move(place)
    return len(samples.ids), absent


def _checked_labels(
    project: Project, source: Path, rows: Sequence[tuple[str, ImportedLabel]]
) -> dict[str, str | Sequence[str] | Pass]:
    """Return id -> label of the rows that have one, each of which the project can hold; of samples
    that were passed alone, why.

    Raises:
        DataError: labels that are none of the project's; two for one sample.
    """
    labels: dict[str, str | Sequence[str]] = {}
    passes: dict[str, Pass] = {}
    problems = []
    for id_, label in rows:
        if label is None:
            continue
        if isinstance(label, Pass):
            passes.setdefault(id_, label)
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
    return {**passes, **labels}


def _check_sizes(
    samples: Samples, labels: Mapping[str, str | Sequence[str] | Pass], source: Path
) -> None:
    """Raise DataError where an image, turned as people see it, has another size than its outlines
    are for."""
    for id_, label in labels.items():
        if isinstance(label, str) and (problem := size_problem(samples, id_, label)):
            raise DataError(f"{problem} That is in {source}; nothing was recorded.")


def _read(
    source: Path, project: Project, samples: Samples, left_out: LeftOut
) -> list[tuple[str, ImportedLabel]]:
    """(id, label) of whatever the source names. left_out: counts files that are not read."""
    settings = project.settings
    if source.is_dir() and settings.kind == "masks" and (source / CLASS_TABLE).is_file():
        return read_mask_folder(source, settings.classes, samples, left_out)
    if source.is_dir():
        return _from_folder(source, samples.ids, settings, left_out)
    if not source.is_file():
        raise DataError(f"Expected a file of labels or a folder at {source} but there is none.")
    if source.suffix.lower() != ".json":
        return _from_table(source, project, samples)
    content = read_content(source, "JSON of COCO or Label Studio")
    if isinstance(content, list):
        return read_label_studio_labels(
            source, content, settings.kind, settings.classes, samples.ids
        )
    return read_coco_labels(source, content, settings.kind, samples)


def _from_table(
    source: Path, project: Project, samples: Samples
) -> list[tuple[str, ImportedLabel]]:
    """(id, label) of each row of a CSV; its encoding is told by the ids and the classes."""
    settings, ids = project.settings, set(samples.ids)
    names = ImageNames(samples.ids if samples.kind == "image" else ())

    def is_known(id_: str, text: str) -> bool:
        if not (id_.isascii() or id_ in ids or names.knows(id_)):
            return False
        label = label_in_cell(text, settings.kind, settings.classes)
        if text.isascii() or label is None or isinstance(label, Pass):
            return True
        try:
            project.label(label)
        except DataError:
            return False
        return True

    return [
        (names.match([id_], source), label_in_cell(text, settings.kind, settings.classes))
        for id_, text in read_label_table(source, is_known)
    ]


def _from_folder(
    folder: Path, ids: Sequence[str], settings: ProjectSettings, left_out: LeftOut
) -> list[tuple[str, ImportedLabel]]:
    """(id, label) of each image in a folder named as a class; of sets, the classes of its folders.

    left_out: counts what is no image, or lies in no folder of a class.
    """
    classes = settings.classes
    if settings.kind in OUTLINES:
        masks = f", or a folder with images/, masks/ and {CLASS_TABLE}"
        raise DataError(
            f"Expected {settings.kind} for this project but folders of classes, as {folder}, have "
            f"none. Give .json (COCO, Label Studio), a .csv{masks * (settings.kind == 'masks')}."
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
