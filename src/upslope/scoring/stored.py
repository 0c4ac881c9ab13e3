"""Signals of the shards of a pool into a `signal_store`, a block of rows after the other."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upslope.datasets.base import Dataset
from upslope.errors import DataError, RunError
from upslope.files import read_digested_json
from upslope.pool import Need
from upslope.pools import Shard, ShardedPool
from upslope.progress import Observer, Stop, no_progress
from upslope.scoring.records import record_or_compare
from upslope.scoring.signals import OnCorrupt, compute_signals
from upslope.signal_store import (
    BLOCK,
    RECORD,
    Precision,
    StoreWriter,
    need_of,
    plain_need,
    read_ids,
    row_digest,
)
from upslope.signals import build
from upslope.signals.base import HasProjection
from upslope.tasks.base import Task


@dataclass(frozen=True)
class ShardStorer:
    """A network and signals, ready to be stored for any shard of a pool.

    folder: of the store. needs: the signals. precision: of numbers on the disk. Others: as for
    `ShardScorer`.
    """

    folder: Path
    needs: tuple[Need, ...]
    model: nn.Module
    task: Task
    device: torch.device
    seed: int
    batch_size: int
    on_corrupt: OnCorrupt
    precision: Precision = "float32"

    @property
    def writer(self) -> StoreWriter:
        """Return the place of the signals."""
        return StoreWriter(self.folder, self.precision)

    def prepare(self, pool: ShardedPool, weights_sha256: str) -> None:
        """Record what is stored, or compare it with what the folder was begun with.

        pool: the shards. weights_sha256: of the network.

        Raises:
            RunError: the folder holds signals of another pool, network, seed or projection.
            DataError: no sample can be read.
        """
        path = self.folder / RECORD
        stored_record = read_digested_json(path) if path.is_file() else None
        projections = _projections(self.needs)
        if stored_record is not None:
            self._check_projections(stored_record, projections)
        shapes = stored_record["signals"] if stored_record is not None else self._shapes(pool)
        record = {
            "version": 1,
            "url": pool.url,
            "weights_sha256": weights_sha256,
            "precision": self.precision,
            "block": BLOCK,
            "seed": self.seed,
            "needs": [plain_need(need) for need in self.needs],
            "signals": shapes,
            **({"projections": projections} if projections else {}),
            "shards": [shard.file_name for shard in pool.shards],
        }
        # Blocks of a shard depend on no other: a pool may gain shards.
        record_or_compare(path, record, {"shards": lambda before, now: {*before} <= {*now}})

    def _check_projections(
        self, stored_record: Mapping[str, Any], projections: Mapping[str, str]
    ) -> None:
        """Refuse to put sketches of two projections into one store; versions before this record was
        kept had another one each."""
        before = stored_record.get("projections", {})
        needs = [str(need_of(plain)) for plain in stored_record["needs"]]
        for need, now in projections.items():
            if need in needs and before.get(need) != now:
                raise RunError(
                    f"Expected {self.folder} to hold {need} of the projection {now} of this "
                    f"version of Upslope but it was begun with {before.get(need, 'an earlier one')}"
                    ", and vectors of two projections cannot be compared. Keep signals in another "
                    "folder, or go on with the version that began this one."
                )

    def is_done(self, shard: Shard) -> bool:
        """Return whether all blocks of a shard are there. shard: one of the pool's."""
        writer, name = self.writer, shard.file_name
        if not writer.ids_of(name).is_file():
            return False
        try:
            blocks, content = read_ids(writer.ids_of(name))
        except RunError:
            warnings.warn(f"{writer.ids_of(name)} is damaged: it is written again.", stacklevel=2)
            return False
        if content not in (None, _content_of(shard)):
            return False  # the shard was another then
        return all(writer.path(n, name, start).is_file() for n in self.needs for start, _ in blocks)

    def store(
        self,
        shard: Shard,
        rows: Dataset,
        observer: Observer = no_progress,
        stop: Stop | None = None,
    ) -> None:
        """Compute the blocks of an open shard that are not there yet.

        shard, rows: the shard, and its samples. observer: is told of samples. stop: a request to
        stop.

        Raises:
            DataError: a sample cannot be read and `on_corrupt` is "fail"; numbers that are not
                finite.
            Interrupted: a stop was requested; blocks that are whole stay.
        """
        writer, name = self.writer, shard.file_name
        content = _content_of(shard)
        by_digest = {row_digest(i, content): i for i in rows.ids}
        ids: list[str] = []
        blocks: list[tuple[int, int]] = []
        shapes = {str(n): tuple(s["shape"]) for n, s in self._stored_signals()}
        for start in range(0, len(rows), BLOCK):
            part = range(start, min(start + BLOCK, len(rows)))
            there = self._there(name, start, by_digest, shapes)
            if there is None:
                table = compute_signals(
                    self.needs,
                    self.model,
                    self.task,
                    rows,
                    part,
                    device=self.device,
                    seed=self.seed,
                    cycle=_address(shard, start),
                    batch_size=self.batch_size,
                    on_corrupt=self.on_corrupt,
                    observer=observer,
                    stop=stop,
                )
                there = [rows.ids[i] for i in table.candidates]
                for need in self.needs if there else ():
                    writer.write(need, name, start, there, table.signals[need], content)
            if there:
                blocks.append((start, len(there)))
                ids += there
        writer.finish(name, ids, blocks, content)

    def _there(
        self, name: str, start: int, by_digest: dict[bytes, str], shapes: dict[str, tuple[int, ...]]
    ) -> list[str] | None:
        """Return the ids of a block that is there for every signal, None where it is not."""
        from upslope.blocks import DamagedBlockError, map_block

        ids: list[str] = []
        for need in self.needs:
            path = self.writer.path(need, name, start)
            if not path.is_file():
                return None
            try:
                records = map_block(path, shapes[str(need)], self.precision)
            except DamagedBlockError:
                warnings.warn(f"{path} is damaged: it is computed again.", stacklevel=2)
                return None
            ids = [by_digest.get(d.tobytes(), "") for d in records["digest"]]
            if "" in ids:
                return None  # of a shard that was another then
        return ids

    def _stored_signals(self) -> list[tuple[Need, Any]]:
        record = read_digested_json(self.folder / RECORD)
        assert record is not None  # `prepare` wrote it
        return list(zip(self.needs, record["signals"], strict=True))

    def _shapes(self, pool: ShardedPool) -> list[dict[str, Any]]:
        """Return what each signal of a sample looks like, by the first that can be read."""
        for shard in pool.shards:
            with pool.open(shard) as rows:
                for start in range(0, len(rows), self.batch_size):
                    part = range(start, min(start + 1, len(rows)))
                    table = compute_signals(
                        self.needs, self.model, self.task, rows, part, device=self.device,
                        seed=self.seed, batch_size=1, on_corrupt="skip",
                    )  # fmt: skip
                    if table.candidates:
                        return [
                            {"need": plain_need(n), "shape": list(table.signals[n].shape[1:])}
                            for n in self.needs
                        ]
        raise DataError(f"Expected samples in {pool.url} but none can be read.")


def plain_needs(needs: Sequence[Need]) -> tuple[Need, ...]:
    """Return the signals that are stored for needs: each once, of all samples alike.

    needs: of strategies.
    """
    return tuple(dict.fromkeys(replace(need, labelled=False) for need in needs))


def _projections(needs: Sequence[Need]) -> dict[str, str]:
    """Return the random projection of each signal that has one."""
    signals = ((str(need), build(need)) for need in needs)
    return {need: s.projection for need, s in signals if isinstance(s, HasProjection)}


def _content_of(shard: Shard) -> str:
    """Return what tells a shard from what it was at another time, as far as its storage does."""
    return f"{shard.size} {shard.tag}"


def _address(shard: Shard, start: int) -> int:
    """Return a number for the random signals of a block, whatever other blocks there are."""
    return int.from_bytes(hashlib.sha256(f"{shard.name}/{start}".encode()).digest()[:4], "big")
