"""Predictions of a whole pool to a file: classes with probabilities, label sets, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope.autodiff import evaluating
from upslope.datasets.base import Dataset
from upslope.datasets.readable import first_readable
from upslope.errors import ConfigError
from upslope.pool import Need
from upslope.progress import Observer, Stop, no_progress
from upslope.scoring.files import TEXT_COLUMNS, Block, ScoreReport, stream_to_file
from upslope.scoring.input_types import check_standardised
from upslope.scoring.signals import OnCorrupt, compute_signals
from upslope.signals import build
from upslope.tasks.base import Task

# As evaluation predicts, so that the figures that it gave are those of what is written.
_POSTERIOR, _PREDICTIONS = Need.of("probabilities", evaluated=True), Need.of("predictions")
_Columns = dict[str, list[Any]]


def predict_to_file(
    path: Path | str,
    *,
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    device: torch.device,
    classes: Sequence[str] = (),
    batch_size: int = 256,
    on_corrupt: OnCorrupt = "fail",
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> ScoreReport:
    """Write one row per sample, in pool order, to a .parquet or .csv file.

    Beside `id`: of classes, `class`, its `probability`, and `p_NAME` for each class; of label
    sets, `labels` with semicolons between and `p_NAME` for each label; of numbers, a column for
    each. classes: the names; numbers from 0 where not given. The file appears when it is whole.

    path: the file. model: runs in eval mode; its own mode is as before afterwards. dataset: the
    pool. device: where to compute. batch_size: samples at a time. observer: is told of progress.
    stop: a request to stop.

    Returns: how many were written and skipped.

    Raises:
        ConfigError: another ending than .parquet or .csv; a task that answers at every pixel.
        DataError: an empty pool, or a sample that cannot be read and `on_corrupt` is "fail".
        RunError: the disk is full or cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from upslope import datasets, models, tasks
        >>> splits = datasets.load("digits", limit=40, test_limit=20)
        >>> mean, std = datasets.statistics(splits.pool)
        >>> task = tasks.build("classification", num_classes=10, mean=mean, std=std)
        >>> model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8)).eval()
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "predictions.csv"
        ...     report = predict_to_file(
        ...         path, model=model, task=task, dataset=splits.pool, device=torch.device("cpu")
        ...     )
        ...     path.read_text().splitlines()[0].split(",")[:4]
        ['id', 'class', 'probability', 'p_0']
    """
    check_standardised(task, dataset)
    with evaluating(model):
        need, first, columns = _form(model, task, dataset, classes, device)

    def block(_: int, part: Sequence[int], report: Observer) -> Block:
        table = compute_signals(
            [need],
            model,
            task,
            dataset,
            part,
            device=device,
            seed=0,
            batch_size=batch_size,
            on_corrupt=on_corrupt,
            observer=report,
            stop=stop,
        )
        return table.candidates, columns(table.signals[need] if table.candidates else first[:0])

    return stream_to_file(path, dataset, range(len(dataset)), block, observer)


def _form(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    classes: Sequence[str],
    device: torch.device,
) -> tuple[Need, Tensor, Callable[[Tensor], _Columns]]:
    """Return (the signal to compute, what it is of the first samples, its columns)."""
    sample = task.prepare(first_readable(dataset).to(device))
    try:
        posterior = build(_POSTERIOR).compute(model, task, sample)
    except ConfigError:  # a task without classes says so
        values = build(_PREDICTIONS).compute(model, task, sample)
        names = _names(classes, values.shape[1])
        headings = [f"value_{name}" if name in TEXT_COLUMNS else name for name in names]
        return _PREDICTIONS, values, lambda v: _by_name(v, headings)
    if posterior.ndim == 2:
        names = _names(classes, posterior.shape[1])
        return _POSTERIOR, posterior, lambda p: _classes(p, names)
    if posterior.ndim == 3 and posterior.shape[1] == 2:
        names = _names(classes, posterior.shape[2])
        return _POSTERIOR, posterior, lambda p: _label_sets(p[:, 1], names)
    raise ConfigError(
        "Expected a task with one answer per sample to predict but this one answers at each of "
        f"{posterior[0, 0].numel():,} positions, which no table can hold. Of masks, "
        "`scoring.predict_masks` writes images to a folder; of others, take "
        "`task.predictions(task.predict(model, inputs))`."
    )


def _classes(p: Tensor, names: Sequence[str]) -> _Columns:
    best = p.max(dim=1)
    return {
        "class": [names[i] for i in best.indices.tolist()],
        "probability": best.values.double().tolist(),
        **_by_name(p, _headings(names)),
    }


def _label_sets(p: Tensor, names: Sequence[str]) -> _Columns:
    present = [[names[i] for i in row.nonzero().flatten().tolist()] for row in p > 0.5]
    return {"labels": [";".join(row) for row in present], **_by_name(p, _headings(names))}


def _headings(names: Sequence[str]) -> list[str]:
    return [f"p_{name}" for name in names]


def _by_name(values: Tensor, headings: Sequence[str]) -> _Columns:
    """The columns of (n, k) numbers, of no rows as well."""
    return dict(zip(headings, values.double().T.tolist(), strict=True))


def _names(classes: Sequence[str], count: int) -> list[str]:
    return list(classes) if len(classes) == count else [str(i) for i in range(count)]
