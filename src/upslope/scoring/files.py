"""Scores of a whole pool to a file, in batches: memory does not grow with the pool."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from upslope.datasets.base import Dataset
from upslope.errors import ConfigError, DataError, SelectionError
from upslope.files import write_atomically
from upslope.pool import Need, PoolView
from upslope.progress import Observer, Progress, Stop, silent
from upslope.scoring.signals import OnCorrupt, compute_signals
from upslope.tasks.base import Task

_ROWS = 1 << 14  # rows held in memory, and in a row group of a Parquet file


class Scorer(Protocol):
    """One number a sample from signals: every strategy that takes the highest scores is one."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """The signals that `score` reads."""
        ...

    def score(self, pool: PoolView) -> Tensor:
        """(n_candidates,), higher is chosen first."""
        ...


@dataclass(frozen=True)
class SignalScore:
    """A signal taken as the score."""

    need: Need

    @property
    def needs(self) -> tuple[Need, ...]:
        """The one signal."""
        return (self.need,)

    def score(self, pool: PoolView) -> Tensor:
        """(n_candidates,). Raises SelectionError where the signal is not one number a sample."""
        values = pool.signal(self.need)
        if values.dim() != 1:
            raise SelectionError(
                f"Expected the signal {self.need} to be one number a sample but it has shape "
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
    observer: Observer = silent,
    stop: Stop | None = None,
) -> ScoreReport:
    """Write `id` and one column a score, in pool order, to a .parquet or .csv file.

    The file appears when it is whole: a run that fails or is stopped leaves none. Scores are
    those of `model` in eval mode on samples that are not augmented.

    Raises:
        ConfigError: another ending than .parquet or .csv, or no score.
        DataError: an empty pool, or a sample that cannot be read and `on_corrupt` is "fail".
        SelectionError: a score that is NaN or infinite; the message names samples.
        RunError: the disk is full or cannot be written.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ConfigError(
            f"Expected a file that ends in {' or '.join(_WRITERS)} but got {path.name!r}."
        )
    if not scores:
        raise ConfigError("Expected at least one score but got none.")
    chosen = range(len(dataset)) if indices is None else indices
    if not len(chosen):
        raise DataError(f"Expected samples to score but {dataset.name} gave none.")
    needs = list(dict.fromkeys(need for scorer in scores.values() for need in scorer.needs))
    skipped: list[str] = []
    stop = stop or Stop()

    def blocks() -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(chosen), _ROWS):
            part = chosen[start : start + _ROWS]
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
                observer=_offset(observer, start, len(chosen)),
                stop=stop,
            )
            skipped.extend(dataset.ids[i] for i in table.skipped)
            view = PoolView([dataset.ids[i] for i in table.candidates], table.signals)
            columns = {name: scorer.score(view).tolist() for name, scorer in scores.items()}
            yield {"id": list(view.candidates), **columns}

    write_atomically(path, lambda temporary: _WRITERS[path.suffix](temporary, blocks()))
    return ScoreReport(len(chosen) - len(skipped), tuple(skipped))


def _write_parquet(path: Path, blocks: Iterator[dict[str, list[Any]]]) -> None:
    writer = None
    try:
        for block in blocks:
            types = {k: pa.string() if k == "id" else pa.float64() for k in block}
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
                writer.writerow(block)
            writer.writerows(zip(*block.values(), strict=True))


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv}


def _offset(observer: Observer, start: int, total: int) -> Observer:
    return lambda p: observer(Progress("score", start + p.done, total) if p.phase == "score" else p)
