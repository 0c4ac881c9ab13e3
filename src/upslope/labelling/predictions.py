"""Predictions of the model of a project for every sample, as a CSV or Parquet file.

    id, prediction, probability, label

`prediction` is the most probable class and `probability` its probability; of label sets, the labels
that are more probable than not, and the probability of all of them together as if labels were
independent. `label` is what people said, empty where nobody has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import ConfigError, DataError
from upslope.files import csv_text, write_atomically, write_text
from upslope.labelling.exports import words_of
from upslope.labelling.extraction import (
    SampleFeatures,
    features_like,
    image_methods,
    take_features,
)
from upslope.labelling.features import Floats
from upslope.labelling.learner import Learner
from upslope.labelling.model_file import read_model_file
from upslope.labelling.people import merge_answers
from upslope.labelling.project import read_project
from upslope.labelling.queue import Queue
from upslope.labelling.samples import open_images, samples_of
from upslope.labelling.settings import AnswerKind, ProjectSettings
from upslope.labelling.state import AnswerLabel

COLUMNS = ("id", "prediction", "probability", "label")


@dataclass(frozen=True)
class PredictionCount:
    """rows: samples predicted. labels: how many the model was trained on. method: what its features
    are. unreadable: samples that cannot be read, which are left out. notes: sentences on what else
    lies in a folder of other images and is no image."""

    rows: int
    labels: int
    method: str
    unreadable: int
    notes: tuple[str, ...] = ()


def learner_and_features(
    project: Path | str, settings: ProjectSettings
) -> tuple[Learner, SampleFeatures]:
    """Return what trains on a project's samples; their features are taken where they are not yet.

    project: its folder. settings: the project's.

    Raises:
        DataError: the samples are gone.
        RunError: a disk that is full.
    """
    samples = samples_of(settings)
    *_, features = take_features(Path(project), samples)
    queue = Queue(samples.ids, settings)
    learner = Learner(settings, samples.ids, queue, features.values, features.method)
    return learner, features


def write_predictions(project: Path | str, path: Path, data: str | None = None) -> PredictionCount:
    """Train on all labels and write a prediction for each sample, whole or not at all.

    project: its folder. path: of the file. data: other images than the project's, a folder.

    Raises:
        ConfigError: a suffix that is neither .csv nor .parquet.
        DataError: fewer than two classes with a label, or no image of `data` that can be read.
        RunError: no project, or a disk that is full.
    """
    _check_suffix(path)
    settings, state = read_project(project)
    learner, features = learner_and_features(project, settings)
    linear_model = learner.final_model(state)
    if linear_model is None:
        raise DataError(
            "Expected labels of two classes or more outside the control slice, to learn from, but "
            "there are none yet. Label some: upslope label serve."
        )
    model, count = linear_model
    ids, values = learner.ids, learner.features
    notes: tuple[str, ...] = ()
    labels: Mapping[str, AnswerLabel] = merge_answers(state, settings.classes)
    if data is not None:
        labels = {}
        _only_of_images(features)
        samples = open_images(data, settings.reading)
        ids, values = samples.ids, features_like(features, Path(project), samples)
        notes = samples.notes
    p = learner.apply(model, values)
    rows = _rows(ids, p, settings.kind, settings.classes, labels)
    _write(path, rows, data)
    return PredictionCount(len(rows), count, learner.method, len(p) - len(rows), notes)


def write_predictions_of_file(model: Path, path: Path, data: str) -> PredictionCount:
    """Write what an exported model makes of each image of a folder, whole or not at all.

    model: a file that `export_model` wrote. path: of the predictions. data: the folder.

    Raises:
        ConfigError: a suffix that is neither .csv nor .parquet, data that are no images.
        DataError: no image that can be read.
        ModelError: another file than such a model.
        RunError: a disk that is full.
    """
    _check_suffix(path)
    model_file = read_model_file(model)
    samples = open_images(data, model_file.reading)
    p = model_file.probabilities(samples)
    rows = _rows(samples.ids, p, model_file.kind, model_file.classes, {})
    _write(path, rows, data)
    unreadable = len(p) - len(rows)
    return PredictionCount(
        len(rows), model_file.labels, model_file.method, unreadable, samples.notes
    )


def _only_of_images(features: SampleFeatures) -> None:
    """Refuse to predict other data by features that depend on all samples of the project."""
    if features.method not in image_methods():
        raise ConfigError(
            "Expected images to predict other data than the project's but got texts or rows, whose "
            "features depend on all of them. Make a project of all rows."
        )


def _rows(
    ids: Sequence[str],
    p: Floats,
    kind: AnswerKind,
    classes: Sequence[str],
    labels: Mapping[str, AnswerLabel],
) -> list[dict[str, Any]]:
    """A row for each sample that can be read. p: (n, classes) probabilities."""
    rows: list[dict[str, Any]] = []
    for id_, row in zip(ids, p, strict=True):
        if not np.isfinite(row).all():
            continue
        if kind == "class":
            best = int(row.argmax())
            prediction, probability = classes[best], float(row[best])
        else:
            prediction = words_of([int(q > 0.5) for q in row], classes)
            probability = float(np.where(row > 0.5, row, 1 - row).prod())
        label = words_of(labels.get(id_), classes)
        rows.append(dict(zip(COLUMNS, (id_, prediction, probability, label), strict=True)))
    return rows


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"Expected a file .csv or .parquet but got {path}.")


def _write(path: Path, rows: Sequence[Mapping[str, Any]], data: str | None) -> None:
    """Write the predictions; a file without any is refused. data: where their images lie."""
    if not rows:
        raise DataError(
            f"Expected images that can be read in {data or 'the project'} but none can be decoded. "
            "Check the files."
        )
    if path.suffix.lower() == ".csv":
        lines = [[f"{v:.4f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
        write_text(path, csv_text(COLUMNS, lines))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({name: [one[name] for one in rows] for name in COLUMNS})
        write_atomically(path, lambda file: parquet.write_table(table, file))
