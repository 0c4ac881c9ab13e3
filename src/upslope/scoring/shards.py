"""Scores of a pool by shards: a Parquet file for each, whole or absent, and one table at the end.

    OUT/pool.json                 the pool, the network and the scores, by which a resume is checked
    OUT/shards/NAME.parquet       id and a column for each score, of one shard
    OUT/signals/                  signals that are kept, where asked for (see `signal_store`)
    OUT/scores.parquet            all of them: shard, id, scores; written once no shard is left

Shards may be scored in any order, by any number of processes: neither scores nor random signals
depend on which other shards there are. A kill loses the shard that was open.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from upslope.distributed.engine import compute_batches, current, using
from upslope.errors import ConfigError, DataError, RunError
from upslope.files import read_digested_json, write_atomically, write_digested_json
from upslope.network_record import (
    NetworkRecord,
    describe_as_it_is,
    list_differences,
    network_differences,
)
from upslope.pool import Need, PoolView
from upslope.pools import Shard, ShardedPool
from upslope.progress import Observer, Progress, Stop, no_progress
from upslope.scoring.duplicate_ids import check_distinct
from upslope.scoring.files import Scorer, check_columns, scores_of
from upslope.scoring.input_types import check_standardised
from upslope.scoring.records import record_to_write, weights_digest
from upslope.scoring.score_files import read_scores, with_facts, write_joined
from upslope.scoring.signals import OnCorrupt, compute_signals
from upslope.scoring.stored import ShardStorer, plain_needs
from upslope.signal_store import Precision
from upslope.signals import build
from upslope.signals.base import FittedSignal
from upslope.tasks.base import Normalises, Task
from upslope.tasks.recorded_options import task_options

RECORD, SHARDS, TABLE, SIGNALS = "pool.json", "shards", "scores.parquet", "signals"
_NOT_FITTED_ON_POOL = (
    "extracted-features",
)  # signals that are fitted in name alone: nothing is trained


@dataclass(frozen=True)
class PoolReport:
    """Scores of a pool.

    scored: rows. skipped: rows that could not be read. new: shards scored by this call. table: the
    file of all.
    """

    scored: int
    skipped: int
    new: int
    table: Path


@dataclass(frozen=True)
class ShardScorer:
    """A network and scores, ready for any shard of a pool.

    pool: the shards. model: the network. on_corrupt: what a sample that cannot be read does. out:
    the folder. scores: column -> strategy with one score per sample. task: as in training.
    device: where to compute. seed: of random signals. batch_size: samples at a time.
    keep: signals that go into a store, OUT/signals. precision: of these. classes: their names,
    where they are known; recorded for `upslope select`, which may have to read labels.
    """

    pool: ShardedPool
    out: Path
    scores: Mapping[str, Scorer]
    model: nn.Module
    task: Task
    device: torch.device
    seed: int = 0
    batch_size: int = 256
    on_corrupt: OnCorrupt = "fail"
    keep: tuple[Need, ...] = ()
    precision: Precision = "float32"
    classes: tuple[str, ...] = ()

    @property
    def storer(self) -> ShardStorer | None:
        """Return what stores the signals to keep; None where there are none."""
        if not self.keep:
            return None
        return ShardStorer(
            self.out / SIGNALS,
            plain_needs(self.keep),
            self.model,
            self.task,
            self.device,
            self.seed,
            self.batch_size,
            self.on_corrupt,
            self.precision,
        )

    def prepare(self) -> None:
        """Record what is computed, or compare it with what the folder was begun with.

        Raises:
            ConfigError: no score, one that must first be trained on the whole pool, or a column
                of the name of ids.
            RunError: the folder holds scores of another pool, network, task or seed.
        """
        if not self.scores and not self.keep:
            raise ConfigError("Expected at least one score, or signals to keep, but got none.")
        check_columns(self.scores)
        for name, scorer in self.scores.items():
            for need in scorer.needs:
                check_separable(name, need)
        for need in self.keep:
            check_separable("the store", need)
        # Where nothing had to be left out, shards have the same scores under either; what has been
        # left out since would not be told by a later call that leaves nothing out.
        may_skip = {"on_corrupt": lambda before, now: (before, now) == ("fail", "skip")}
        record = {**self._record(), "network": self._network_record()}
        record_now = record_to_write(self.out / RECORD, record, may_skip)
        if self.storer is not None:
            self.storer.prepare(self.pool, weights_digest(self.model))
        # Last: a call that the store refuses must leave the folder to the call that began it.
        if record_now is not None:
            write_digested_json(self.out / RECORD, record_now)

    def missing(self) -> list[Shard]:
        """Return the shards that have no scores yet.

        Raises:
            DataError: a shard that has scores is not what it was, or is gone.
        """
        there = {self.file_of(shard).name for shard in self.pool.shards}
        folder = self.out / SHARDS
        absent = [p.stem for p in sorted(folder.glob("*.parquet")) if p.name not in there]
        if absent:
            raise DataError(
                f"Expected {self.pool.url} to hold every shard that has scores in {folder} but "
                f"{absent[0]!r}{f' and {len(absent) - 1:,} more' if len(absent) > 1 else ''} "
                f"{'is' if len(absent) == 1 else 'are'} not there any more. "
                "Restore what is gone, or score what is left into another folder."
            )
        return [shard for shard in self.pool.shards if not self._is_done(shard)]

    def score(
        self, shard: Shard, observer: Observer = no_progress, stop: Stop | None = None
    ) -> Path:
        """Write the scores of a shard, whole or not at all; return the file.

        shard: one of the pool's. observer: is told of samples. stop: a request to stop.

        Raises:
            DataError: the shard cannot be read, or a sample cannot and `on_corrupt` is "fail".
            StorageError: the shard cannot be fetched.
            SelectionError: a score that is NaN or infinite.
            Interrupted: a stop was requested.
        """
        return self.write(shard, self.compute(shard, observer, stop))

    def compute(
        self, shard: Shard, observer: Observer = no_progress, stop: Stop | None = None
    ) -> pa.Table:
        """Return the scores of a shard as a table: id and a column for each score.

        Arguments and errors as of `score`.
        """
        needs = list(dict.fromkeys(n for scorer in self.scores.values() for n in scorer.needs))
        with self.pool.open(shard) as rows:
            check_standardised(self.task, rows)
            if self.storer is not None and not self.storer.is_done(shard):
                self.storer.store(shard, rows, observer, stop)
            table = compute_signals(
                needs,
                self.model,
                self.task,
                rows,
                range(len(rows)),
                device=self.device,
                seed=self.seed,
                cycle=shard.address,
                batch_size=self.batch_size,
                on_corrupt=self.on_corrupt,
                observer=observer,
                stop=stop,
            )
            view = PoolView([rows.ids[i] for i in table.candidates], table.signals)
            columns: dict[str, Any] = {"id": pa.array(view.candidates, pa.string())}
            for name, scorer in self.scores.items():
                values = scores_of(scorer, view).double().numpy()
                columns[name] = pa.array(values, pa.float64())
            facts = {
                "shard": shard.name,
                "size": shard.size,
                "tag": shard.tag,
                "skipped": [rows.ids[i] for i in table.skipped],
            }
        return with_facts(pa.table(columns), facts)

    def write(self, shard: Shard, scores: pa.Table) -> Path:
        """Return the file of a shard, once what `compute` returned is written, whole or not at all.

        shard: one of the pool's. scores: its table.
        """
        import pyarrow.parquet as pq

        path = self.file_of(shard)
        write_atomically(path, lambda temporary: pq.write_table(scores, temporary))
        return path

    def stream(self, batches: Sequence[Tensor]) -> Generator[list[pa.Table]]:
        """Yield the scores of each batch of shards, by their numbers: work for an engine.

        Raises:
            RunError: signals are stored too, in a folder that this process does not see.
        """
        if self.storer is not None and not self.storer.folder.is_dir():
            raise RunError(
                f"Expected every process to see {self.storer.folder}, where each stores signals, "
                "but one does not. Give a folder of a file system that all machines mount."
            )
        for batch in batches:
            with using(None):  # a shard is not divided again
                tables = [self.compute(self.pool.shards[number]) for number in batch.tolist()]
            yield tables

    def file_of(self, shard: Shard) -> Path:
        """Return where the scores of a shard are kept."""
        return self.out / SHARDS / f"{shard.file_name}.parquet"

    def _is_done(self, shard: Shard) -> bool:
        path = self.file_of(shard)
        if not path.is_file():
            return False
        try:
            _, facts = read_scores(path)
        except DataError:
            warnings.warn(f"{path} is damaged: its shard is scored again.", stacklevel=2)
            return False
        self.pool.check_unchanged(shard, int(facts["size"]), str(facts["tag"]))
        return self.storer is None or self.storer.is_done(shard)

    def _network_record(self) -> NetworkRecord:
        """Return what tells the network from others of the same weights: as it is recorded, where
        there is a record, of which numbers may differ by rounding.

        Raises:
            RunError: it is another network.
        """
        now = describe_as_it_is(self.model, self.pool.input_shape)
        earlier: Mapping[str, Any] = read_digested_json(self.out / RECORD) or {}
        before: NetworkRecord = earlier.get("network", now)
        if differences := network_differences(before, now):
            raise RunError(
                f"Expected {self.out} to be gone on with by the network that it was begun with but "
                f"that was another: {list_differences(differences)}. Give the former one, or "
                "another folder."
            )
        return before

    def _record(self) -> dict[str, Any]:
        return {
            "version": 1,
            "url": self.pool.url,
            "format": self.pool.format,
            "inputs": self.pool.column,
            "input_shape": list(self.pool.input_shape),
            "form": str(self.pool.form),
            "scores": {name: str(scorer) for name, scorer in self.scores.items()},
            "weights_sha256": weights_digest(self.model),
            **(
                {"mean": list(self.task.mean), "std": list(self.task.std)}
                if isinstance(self.task, Normalises)
                else {}
            ),
            "task": task_options(self.task),
            "seed": self.seed,
            "on_corrupt": self.on_corrupt,
            **({"classes": list(self.classes)} if self.classes else {}),
        }


def score_pool(
    scorer: ShardScorer,
    *,
    ids_by_shard: bool = False,
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> PoolReport:
    """Score the shards that are left, one after the other, and write the table of all.

    scorer: the pool, the network and the scores. ids_by_shard: put the name of the shard before
    each id in the table. observer: is told of shards. stop: a request to stop.

    Raises:
        ConfigError, RunError: as `ShardScorer.prepare`.
        DataError: as `ShardScorer.score`; an id that is in two shards. What is scored stays.
        Interrupted: a stop was requested; the same call goes on.
    """
    scorer.prepare()
    missing, total = scorer.missing(), len(scorer.pool)
    observer(Progress("shards", total - len(missing), total))
    for count, _ in enumerate(_score(scorer, missing, stop), total - len(missing) + 1):
        observer(Progress("shards", count, total))
    return join_scores(scorer, new=len(missing), ids_by_shard=ids_by_shard)


def _score(scorer: ShardScorer, missing: Sequence[Shard], stop: Stop | None) -> Iterator[Shard]:
    """Yield each shard that is left, once its scores are written."""
    if current() is None:
        for shard in missing:
            scorer.score(shard, stop=stop)
            yield shard
        return
    batches = [torch.tensor([shard.number]) for shard in missing]
    with closing(compute_batches(scorer, batches)) as results:
        for shard, (table,) in zip(missing, results, strict=True):
            scorer.write(shard, table)
            yield shard
            if stop:
                stop.check()


def join_scores(scorer: ShardScorer, new: int = 0, *, ids_by_shard: bool = False) -> PoolReport:
    """Write the table of all shards, in their order, once each id is seen to be there once.

    scorer, ids_by_shard: as for `score_pool`. new: shards scored just now, for the report.

    Raises:
        DataError: an id in two shards, or a file of scores that is damaged.
        RunError: a shard that has no scores yet.
    """
    files = [scorer.file_of(shard) for shard in scorer.pool.shards]
    names = [shard.name for shard in scorer.pool.shards]
    if absent := [n for n, f in zip(names, files, strict=True) if not f.is_file()]:
        raise RunError(
            f"Expected scores of all {len(files):,} shards in {scorer.out} but "
            f"{len(absent):,} have none, first {absent[0]!r}. Score them first."
        )
    if not ids_by_shard:
        check_distinct(names, files, scorer.out)
    path, counts = scorer.out / TABLE, [0, 0]

    def tables() -> Iterator[pa.Table]:
        for name, file in zip(names, files, strict=True):
            table, facts = read_scores(file)
            counts[0] += len(table)
            counts[1] += len(facts["skipped"])
            if ids_by_shard:
                ids = pa.array([f"{name}/{i}" for i in table.column("id").to_pylist()], pa.string())
                table = table.set_column(0, "id", ids)
            shard = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [name])
            yield table.add_column(0, "shard", shard).replace_schema_metadata(None)

    write_atomically(path, lambda temporary: write_joined(temporary, tables()))
    return PoolReport(counts[0], counts[1], new, path)


def check_separable(name: str, need: Any) -> None:
    """Refuse a signal that must be trained on the whole pool before it can be computed.

    name: what asks for it. need: the signal.

    Raises:
        ConfigError: it must be.
    """
    signal: object = build(replace(need, labelled=False))
    if isinstance(signal, FittedSignal) and need.name not in _NOT_FITTED_ON_POOL:
        raise ConfigError(
            f"Expected signals that each sample has by itself but {name} wants {need}, which is "
            "trained on the pool first: in shards, each would be scored by another. Take another "
            "strategy, such as margin or entropy-gradnorm, or temperature=1."
        )


def shards_of_rank(shards: Sequence[Shard], rank: int, world: int) -> list[Shard]:
    """Return the shards that one of several processes scores: every `world`-th of the list."""
    return list(shards[rank::world])
