"""Labels out of a project: a CSV or Parquet file, or a folder per class.

One row per answer, with who gave it and how long it took, and the label that all of a sample's
answers come to. The columns:

    id       of the sample
    label    what the answers come to: a name, or names with semicolons between; empty for none
    author, answer, reason, seconds, note, slice, guess_shown     one person's answer; seconds are
             empty where it is not known how long it took
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.datasets.layout import UNLABELLED, is_hidden
from upslope.errors import ConfigError, DataError
from upslope.files import (
    csv_text,
    make_folder,
    new_folder,
    sync_file,
    write_atomically,
    write_text,
)
from upslope.labelling.people import MergeMethod, merge_answers
from upslope.labelling.project import names_of, read_project
from upslope.labelling.samples import FolderImages, samples_of
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import Answer, AnswerLabel, LabelState

COLUMNS = (
    "id", "label", "author", "answer", "reason", "seconds", "note", "slice", "guess_shown",
)  # fmt: skip
NO_LABEL = "none"
"""What stands for a set of labels that is empty."""


@dataclass(frozen=True)
class ExportCount:
    """samples: how many have a label. rows: how many answers were written. passed: samples with
    answers and without a label."""

    samples: int
    rows: int
    passed: int


def export_table(project: Path | str, path: Path, merge: MergeMethod = "majority") -> ExportCount:
    """Write all answers to a file, CSV or Parquet by its suffix, whole or not at all.

    In CSV, a cell that a spreadsheet would take for a formula gets an apostrophe in front, which
    `imports` takes off again. merge: how several people's answers become one label.

    Raises:
        ConfigError: another suffix.
        RunError: no project, or a disk that is full.
    """
    settings, state = read_project(project)
    labels = merge_answers(state, settings.classes, merge)
    rows = _rows(state, settings.classes, labels)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        write_text(
            path, csv_text(COLUMNS, ([_cell(row[name]) for name in COLUMNS] for row in rows))
        )
    elif suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({name: [row[name] for row in rows] for name in COLUMNS}, _schema(pa))
        write_atomically(path, lambda file: parquet.write_table(table, file))
    else:
        raise ConfigError(
            "Expected a file .csv, .parquet, .json (COCO), .safetensors or .onnx (the model), or a "
            f"folder without a suffix, but got {path}."
        )
    return count_labels(state, labels, len(rows))


def export_folders(
    project: Path | str, folder: Path, merge: MergeMethod = "majority"
) -> ExportCount:
    """Write a folder per class with the images of that class, as data set `folder` reads them,
    all of them or none.

    merge: how several people's answers become one label. Files are hard links where the file system
    has them, else copies. Images that were passed or not answered are left out.

    Raises:
        ConfigError: no images of a folder, label sets, or class names that cannot name folders.
        DataError: a folder that holds other files, or images that are gone.
        RunError: no project, or a disk that is full.
    """
    settings, state = read_project(project)
    if settings.kind != "class":
        raise ConfigError("Expected one class per sample for folders of classes. Export a .csv.")
    unusable = [name for name in settings.classes if not _names_a_folder(name)]
    if unusable:
        raise ConfigError(
            f"Expected class names that can name folders but got {', '.join(map(repr, unusable))}. "
            "Export a .csv."
        )
    labels = merge_answers(state, settings.classes, merge)
    samples = labelled_images(settings, labels, folder)
    with new_folder(folder) as new:
        for id_, label in labels.items():
            target = new / str(names_of(label, settings.classes)) / id_
            make_folder(target.parent)
            link_file(samples.root / id_, target)
    return count_labels(state, labels, len(labels))


def labelled_images(
    settings: ProjectSettings, labels: Mapping[str, AnswerLabel], folder: Path
) -> FolderImages:
    """Return the images of a project, whose labelled ones are to be written into a new folder.

    Raises:
        ConfigError: samples that are no images of a folder.
        DataError: a folder that holds other files, or labelled images that are gone.
    """
    samples = samples_of(settings)
    if not isinstance(samples, FolderImages):
        raise ConfigError("Expected images of a folder for folders of images. Export a .csv.")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"Expected {folder} to be new or empty but it holds files already.")
    if folder.resolve().is_relative_to(samples.root.resolve()):
        raise DataError(
            f"Expected a folder outside of {samples.root} but got {folder}, in which the copies "
            "would be new images to label. Choose another."
        )
    check_there(samples, labels)
    return samples


def check_there(samples: FolderImages, labels: Iterable[str]) -> None:
    """Refuse labelled images that are gone. labels: their ids.

    Raises:
        DataError: with the first of them.
    """
    there = set(samples.ids)
    if absent := [id_ for id_ in labels if id_ not in there]:
        raise DataError(
            f"Expected every labelled image in {samples.root} but {len(absent)} are gone, first "
            f"{absent[0]!r}. Put them back, or export a .csv."
        )


def _rows(
    state: LabelState, classes: Sequence[str], labels: Mapping[str, AnswerLabel]
) -> list[Mapping[str, Any]]:
    answers = [answer for by_author in state.answers.values() for answer in by_author.values()]
    return [
        {
            "id": answer.id,
            "label": words_of(labels.get(answer.id), classes),
            "author": answer.author,
            "answer": words_of(answer.label, classes),
            "reason": answer.reason,
            "seconds": None if answer.seconds is None else float(answer.seconds),
            "note": answer.note,
            "slice": answer.slice,
            "guess_shown": answer.guess_shown,
        }
        for answer in sorted(answers, key=_order)
    ]


def _order(answer: Answer) -> tuple[int, str]:
    return answer.order, answer.id


def words_of(label: AnswerLabel | None, classes: Sequence[str]) -> str:
    """Return a label as a cell holds it: a name, or names with semicolons between."""
    if label is None:
        return ""
    names = names_of(label, classes)
    return names if isinstance(names, str) else ";".join(names) or NO_LABEL


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else str(value)


def _schema(pa: Any) -> Any:
    types = {"seconds": pa.float64(), "guess_shown": pa.bool_()}
    return pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])


def count_labels(state: LabelState, labels: Mapping[str, AnswerLabel], rows: int) -> ExportCount:
    """Return what an export of `labels` in so many rows holds and leaves out."""
    return ExportCount(len(labels), rows, len(state.answers) - len(labels))


def _names_a_folder(name: str) -> bool:
    """Whether data sets and file systems take a folder of this name for that of a class."""
    is_read = not is_hidden(name) and name.lower() not in UNLABELLED
    return is_read and name == Path(name).name and not set('/\\:*?"<>|') & set(name)


def link_file(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy that is on the disk on return.

    Where `source` is a link itself, the file is meant that it leads to: elsewhere it may lead to
    nothing.
    """
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
        sync_file(target)
