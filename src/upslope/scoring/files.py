"""Scores of a whole pool to a file, in batches: memory does not grow with the pool."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import Tensor, nn

from upslope.datasets.base import Dataset, place_of
from upslope.errors import ConfigError, DataError, SelectionError
from upslope.files import name_in_use, safe_cell, write_atomically
from upslope.pool import Need, PoolView
from upslope.progress import Observer, Progress, Stop, no_progress
from upslope.scoring.input_types import check_standardised
from upslope.scoring.signals import OnCorrupt, compute_signals
from upslope.tasks.base import Task

_ROWS = 1 << 14  # rows held in memory, and in a row group of a Parquet file
TEXT_COLUMNS = ("id", "class", "labels")
"""Columns that hold text; all others hold numbers."""

Block = tuple[Sequence[int], dict[str, list[Any]]]
"""Indices of samples that could be read, and a value of each column for each of these."""


class Scorer(Protocol):
    """One number per sample from signals: every strategy that takes the highest scores is one."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the signals that `score` reads."""
        ...

    def score(self, pool: PoolView) -> Tensor:
        """Return the scores, (n_candidates,); higher is chosen first.

        pool: the candidates and their signals.
        """
        ...


@dataclass(frozen=True)
class SignalScore:
    """A signal taken as the score.

    need: the signal.
    """

    need: Need

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the one signal that is written."""
        return (self.need,)

    def score(self, pool: PoolView) -> Tensor:
        """Return the signal as scores, (n_candidates,).

        pool: the candidates and their signals.

        Raises:
            SelectionError: the signal is not one number per sample.
        """
        values = pool.signal(self.need)
        if values.dim() != 1:
            raise SelectionError(
                f"Expected the signal {self.need} to be one number per sample but it has shape "
                f"{tuple(values.shape[1:])} for each. Choose a score."
            )
        return values


@dataclass(frozen=True)
class ScoreReport:
    """scored: rows written; skipped: ids that could not be read."""

    scored: int
    skipped: tuple[str, ...]


def score_to_file(
    path: Path | str,
    scores: Mapping[str, Scorer],
    *,
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    device: torch.device,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    on_corrupt: OnCorrupt = "fail",
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> ScoreReport:
    """Write `id` and one column a score, in pool order, to a .parquet or .csv file.

    The file appears when it is whole: a run that fails or is stopped leaves none. Scores are
    those of `model` in eval mode on samples that are not augmented.

    path: the file. scores: column -> strategy with one score per sample. task: as in training.
    dataset: the pool. device: where to compute. indices: positions to score; all by default. seed:
    of random signals. batch_size: samples at a time. observer: is told of progress. stop: a request
    to stop.

    Returns: how many were written and skipped.

    Raises:
        ConfigError: another ending than .parquet or .csv, or no score; a column of a name that
            those of text have; float images beside a task with statistics.
        DataError: an empty pool, or a sample that cannot be read and `on_corrupt` is "fail".
        SelectionError: a score that is NaN or infinite; the message names samples.
        RunError: the disk is full or cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from upslope import datasets, models, strategies, tasks
        >>> splits = datasets.load("digits", limit=40, test_limit=20)
        >>> mean, std = datasets.statistics(splits.pool)
        >>> task = tasks.build("classification", num_classes=10, mean=mean, std=std)
        >>> model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8)).eval()
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "scores.csv"
        ...     report = score_to_file(
        ...         path, {"margin": strategies.build("margin")}, model=model, task=task,
        ...         dataset=splits.pool, device=torch.device("cpu"),
        ...     )
        ...     len(path.read_text().splitlines())
        41
    """
    if not scores:
        raise ConfigError("Expected at least one score but got none.")
    check_columns(scores)
    check_standardised(task, dataset)
    needs = list(dict.fromkeys(need for scorer in scores.values() for need in scorer.needs))

    def block(start: int, part: Sequence[int], report: Observer) -> Block:
        table = compute_signals(
            needs,
            model,
            task,
            dataset,
            part,
            device=device,
            seed=seed,
            # Random signals draw anew in each block.
            cycle=start,
            batch_size=batch_size,
            on_corrupt=on_corrupt,
            observer=report,
            stop=stop,
        )
        view = PoolView([dataset.ids[i] for i in table.candidates], table.signals)
        return table.candidates, {n: scores_of(s, view).tolist() for n, s in scores.items()}

    positions = range(len(dataset)) if indices is None else indices
    return stream_to_file(path, dataset, positions, block, observer)


def scores_of(scorer: Scorer, view: PoolView) -> Tensor:
    """Return the scores of candidates, (n,), also of none: where no sample could be read."""
    return scorer.score(view) if len(view) else torch.empty(0)


def check_columns(scores: Mapping[str, Scorer]) -> None:
    """Raise ConfigError where scores would stand in place of ids, or in another column of text."""
    if clashes := [name for name in scores if name in TEXT_COLUMNS]:
        raise ConfigError(
            f"Expected names of scores but {', '.join(TEXT_COLUMNS)}, which columns of text have, "
            f"but got {', '.join(clashes)}. Choose another name."
        )


def check_file_name(path: Path | str) -> Path:
    """Return the path; ConfigError unless a file of its ending can be written there."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ConfigError(
            f"Expected a file that ends in {' or '.join(_WRITERS)} but got {path.name!r}."
        )
    if problem := name_in_use(path, as_file=True):
        raise ConfigError(f"Expected to be able to write {path} but {problem}")
    return path


def stream_to_file(
    path: Path | str,
    dataset: Dataset,
    indices: Sequence[int],
    block: Callable[[int, Sequence[int], Observer], Block],
    observer: Observer = no_progress,
) -> ScoreReport:
    """Write `id` and the columns that `block` gives, in the order of `indices`, a part at a time.

    block: (place of its first, indices of a part, whom to tell of progress) -> (those that could
    be read, a value of each column for each of these).

    Raises:
        ConfigError: another ending than .parquet or .csv.
        DataError: no sample.
        RunError: the disk is full or cannot be written.
    """
    path = check_file_name(path)
    if not len(indices):
        raise DataError(f"Expected samples to score but {place_of(dataset)} gave none.")
    ids_left_out: list[str] = []

    def blocks() -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(indices), _ROWS):
            part = indices[start : start + _ROWS]
            read, columns = block(start, part, _offset(observer, start, len(indices)))
            there = set(read)
            ids_left_out.extend(dataset.ids[i] for i in part if i not in there)
            yield {"id": [dataset.ids[i] for i in read], **columns}

    write_atomically(path, lambda temporary: _WRITERS[path.suffix](temporary, blocks()))
    return ScoreReport(len(indices) - len(ids_left_out), tuple(ids_left_out))


def _write_parquet(path: Path, blocks: Iterator[dict[str, list[Any]]]) -> None:
    import pyarrow.parquet as pq

    writer = None
    try:
        for block in blocks:
            types = {k: pa.string() if k in TEXT_COLUMNS else pa.float64() for k in block}
            table = pa.table(block, schema=pa.schema(types.items()))
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def _write_csv(path: Path, blocks: Iterator[dict[str, list[Any]]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for i, block in enumerate(blocks):
            if i == 0:
                writer.writerow([safe_cell(name) for name in block])
            columns = [
                list(map(safe_cell, values)) if name in TEXT_COLUMNS else values
                for name, values in block.items()
            ]
            writer.writerows(zip(*columns, strict=True))


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv}


def _offset(observer: Observer, start: int, total: int) -> Observer:
    return lambda p: observer(Progress("score", start + p.done, total) if p.phase == "score" else p)
