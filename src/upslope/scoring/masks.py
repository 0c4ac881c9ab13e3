"""Predicted masks of a whole pool to a folder: one PNG per image, and the table of their classes.

The folder is laid out as the data set `mask-folder` reads it: `classes.csv`, and `masks/ID.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from upslope.autodiff import evaluating
from upslope.batches import in_order
from upslope.datasets.base import Dataset, place_of
from upslope.datasets.readable import first_readable, readable
from upslope.errors import ConfigError, DataError
from upslope.files import csv_line, new_folder, safe_cell, sync_file, write_text
from upslope.progress import Observer, Progress, Stop, no_progress
from upslope.scoring.files import ScoreReport
from upslope.scoring.input_types import check_standardised
from upslope.scoring.signals import OnCorrupt
from upslope.seeds import deterministic
from upslope.tasks.base import Task

_MOST = 255  # classes: their positions fill one byte, and 255 is what data sets ignore
_TABLE_ENDINGS = (".csv", ".parquet", ".png", ".npy")


def predicts_masks(model: nn.Module, task: Task, dataset: Dataset, device: torch.device) -> bool:
    """Return whether the task predicts a class for every pixel of an image, by its first samples.

    model: the network. task: as in training. dataset: the pool. device: where to compute.
    """
    inputs = first_readable(dataset).to(device)
    with evaluating(model), torch.no_grad():
        predictions = task.predictions(task.predict(model, task.prepare(inputs)))
    return predictions.dim() == 3 and not predictions.is_floating_point()


def predict_masks(
    folder: Path | str,
    *,
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    device: torch.device,
    classes: Sequence[str] = (),
    batch_size: int = 8,
    on_corrupt: OnCorrupt = "fail",
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> ScoreReport:
    """Write a predicted mask for each image, a grey PNG of the positions of classes from 0.

    Masks have the size at which the network sees the images: their own, unless the data set was
    asked for another. The folder appears when it is whole. classes: the names, written to
    `classes.csv` beside the masks; numbers from 0 where not given.

    folder: new, or empty. model: the network. task: as in training, with windows where it evaluates
    so. dataset: the pool. device: where to compute. batch_size: images at a time. on_corrupt:
    "skip" leaves out images that cannot be read. observer: is told of progress. stop: a request to
    stop.

    Returns: how many were written and skipped.

    Raises:
        ConfigError: a folder with content, or the name of a file; more than 255 classes.
        DataError: an empty pool, an id that can name no file, or an image that cannot be read and
            `on_corrupt` is "fail".
        RunError: the disk is full or cannot be written.
    """
    folder, stop = check_folder(folder), stop or Stop()
    if not len(dataset):
        raise DataError(f"Expected images to predict but {place_of(dataset)} gave none.")
    check_standardised(task, dataset)
    names = _file_names(dataset)
    ids_left_out: list[str] = []
    count = len(classes)
    with new_folder(folder) as new, evaluating(model), deterministic(device), torch.no_grad():
        for part in in_order(len(dataset), batch_size):
            stop.check()
            positions = part.tolist()
            inputs, mask = _read(dataset, positions, on_corrupt)
            there = [position for position, ok in zip(positions, mask.tolist(), strict=True) if ok]
            ids_left_out += [dataset.ids[i] for i in sorted({*positions} - {*there})]
            if there:
                outputs = task.predict(model, task.prepare(inputs.to(device)))
                masks = task.predictions(outputs).cpu()
                count = max(count, _count(masks))
                for position, values in zip(there, masks, strict=True):
                    _save(new / "masks" / names[position], values)
            observer(Progress("score", positions[-1] + 1, len(dataset)))
        _write_classes(new / "classes.csv", classes, count)
    return ScoreReport(len(dataset) - len(ids_left_out), tuple(ids_left_out))


def check_folder(folder: Path | str) -> Path:
    """Return the path; ConfigError for a folder with content, or the name of a file."""
    folder = Path(folder)
    if folder.suffix.lower() in _TABLE_ENDINGS:
        raise ConfigError(
            f"Expected a folder for the predicted masks but got {folder.name!r}: this network "
            "predicts a class for every pixel, which no table can hold. Give --out FOLDER; it "
            "receives a PNG for each image, and classes.csv."
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(
            f"Expected a new or an empty folder for the predicted masks but {folder} "
            f"{'is a file' if folder.is_file() else 'has content'}. Give another with --out FOLDER."
        )
    return folder


def _read(
    dataset: Dataset, positions: Sequence[int], on_corrupt: OnCorrupt
) -> tuple[Tensor, Tensor]:
    if on_corrupt == "skip":
        return readable(dataset, positions)
    return dataset.inputs(positions), torch.ones(len(positions), dtype=torch.bool)


def _file_names(dataset: Dataset) -> list[str]:
    """Return the file of each id, below the folder of masks: the id itself, with .png behind it."""
    names = []
    for id_ in dataset.ids:
        parts = PurePosixPath(id_).parts
        plain = bool(parts) and PurePosixPath(*parts).as_posix() == id_
        if not plain or id_.startswith("/") or ".." in parts or any(c in id_ for c in "\\\0:"):
            raise DataError(
                f"Expected ids that can name files, as photo or trip/photo, but got {id_!r}. Give "
                "other ids, or predict in Python: `task.predictions(task.predict(model, inputs))`."
            )
        names.append(f"{id_}.png")
    return names


def _count(masks: Tensor) -> int:
    count = int(masks.max()) + 1
    if count > _MOST:
        raise ConfigError(
            f"Expected at most {_MOST} classes, whose positions fill one byte of a PNG, but class "
            f"{count - 1} was predicted. Predict in Python: "
            "`task.predictions(task.predict(model, inputs))`."
        )
    return count


def _save(path: Path, mask: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.numpy().astype(np.uint8)).save(path, "PNG")
    sync_file(path)


def _write_classes(path: Path, classes: Sequence[str], count: int) -> None:
    names = classes if len(classes) == count else [str(i) for i in range(count)]
    lines = [csv_line(["name", "id"])]
    lines += [csv_line([safe_cell(name), i]) for i, name in enumerate(names)]
    write_text(path, "".join(lines))
