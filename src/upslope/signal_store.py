"""Signals of a pool under one network, on the disk: features, posteriors, sketches of gradients.

    FOLDER/store.json                  what was computed: signals, shapes, type, rows of a block
    FOLDER/ids/SHARD.arrow             ids of a shard, in order; written when the shard is whole
    FOLDER/SIGNAL/SHARD-000000.npy     a block: rows from that one on of a shard (see `blocks`)

A block is there, whole, or it is not: the files are the map of what is done. Blocks are compared
with their digests when they are first read, and mapped into memory, so that a strategy reads some
rows of a pool that does not fit.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.blocks import SUFFIX, Records, map_block, write_block
from upslope.errors import DataError, RunError
from upslope.files import from_json, json_digest, read_digested_json, to_json, write_atomically
from upslope.pool import Need

RECORD, IDS = "store.json", "ids"
BLOCK = 1024
"""Rows of a block: what a kill may cost."""
MAPS = 4096
"""Blocks mapped at once; systems allow some 65,000 maps per process."""
_METADATA, _DIGEST = b"upslope", "sha256"

Precision = Literal["float16", "float32"]


@dataclass(frozen=True)
class StoreWriter:
    """The place of signals that are being computed, one block of a shard after another.

    folder: of the store. precision: of the numbers on the disk.
    """

    folder: Path
    precision: Precision = "float32"

    def has(self, need: Need, shard: str, start: int) -> bool:
        """Return whether a block is there. need: the signal. shard, start: which block."""
        return self.path(need, shard, start).is_file()

    def path(self, need: Need, shard: str, start: int) -> Path:
        """Return the file of a block. need: the signal. shard, start: which block."""
        return self.folder / folder_of(need) / f"{shard}-{start:06d}{SUFFIX}"

    def write(self, need: Need, shard: str, start: int, ids: Sequence[str], values: Tensor) -> None:
        """Write a block, whole or not at all.

        need: the signal. shard, start: which block. ids, values: of each row, (n, ...).

        Raises:
            DataError: numbers that are not finite, or too large for float16.
            RunError: the disk is full or cannot be written.
        """
        with np.errstate(over="ignore"):  # told below, by name
            array = values.numpy().astype(self.precision)
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(_advice_on_size(need, ids[row], values[row], self.precision))
        digests = [hashlib.sha256(id_.encode()).digest() for id_ in ids]
        write_block(self.path(need, shard, start), digests, array, self.precision)

    def finish(self, shard: str, ids: Sequence[str], blocks: Sequence[tuple[int, int]]) -> None:
        """Write the ids of a shard whose blocks are all there.

        shard: its name. ids: of its rows. blocks: (start, rows) of each block.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        plain = [list(block) for block in blocks]
        record = {"blocks": plain, _DIGEST: json_digest([plain, list(ids)])}
        table = pa.table({"id": pa.array(ids, pa.string())})
        table = table.replace_schema_metadata({_METADATA: to_json(record)})

        def write(temporary: Path) -> None:
            with (
                pa.OSFile(str(temporary), "wb") as file,
                pa.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table)

        write_atomically(self.ids_of(shard), write)

    def ids_of(self, shard: str) -> Path:
        """Return the file of the ids of a shard. shard: its name."""
        return self.folder / IDS / f"{shard}.arrow"


def _advice_on_size(need: Need, id_: str, values: Tensor, precision: Precision) -> str:
    """Say what is wrong with numbers of a row that a store cannot keep.

    values: of the row. precision: of the numbers on the disk.
    """
    largest = float(values.double().abs().max())
    advice = "Look at the network's training."
    if math.isfinite(largest):
        larger = largest <= torch.finfo(torch.float32).max and precision != "float32"
        advice = "Keep float32." if larger else "No precision that a store has can hold it."
    return (
        f"Expected finite numbers of {need} but those of {id_!r} are not, in {precision}: the "
        f"largest is {largest:g}. {advice}"
    )


@dataclass(frozen=True)
class _Block:
    shard: str
    start: int
    rows: int


class SignalStore:
    """The signals of a pool, read by position, 0 to len - 1 in the order of the shards.

    folder: of the store, all of whose shards are whole.

    Raises:
        RunError: there is no store, or it is not whole.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        record = read_digested_json(self.folder / RECORD)
        if record is None:
            raise RunError(
                f"Expected a store of signals in {self.folder} but there is none, or its "
                f"{RECORD} is damaged. `upslope score --keep STRATEGIES` makes one."
            )
        self.record: Mapping[str, Any] = record
        self.precision: Precision = record["precision"]
        self.shapes = {need_of(n["need"]): tuple(n["shape"]) for n in record["signals"]}
        self._writer = StoreWriter(self.folder, self.precision)
        self._blocks: list[_Block] = []
        self._shards: list[tuple[str, int]] = []
        total = 0
        for shard in record["shards"]:
            path = self._writer.ids_of(shard)
            if not path.is_file():
                raise RunError(
                    f"Expected signals of all shards in {self.folder} but {shard!r} has none, or "
                    "not all of its blocks. Run the command that computes them again."
                )
            blocks = [_Block(shard, start, rows) for start, rows in blocks_of(path)]
            self._blocks += blocks
            self._shards.append((shard, total))
            total += sum(block.rows for block in blocks)
        self._starts = np.cumsum([0, *(block.rows for block in self._blocks)])
        self._maps: OrderedDict[tuple[Need, int], Records] = OrderedDict()

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the signals that are there."""
        return tuple(self.shapes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def ids(self, positions: Sequence[int]) -> list[str]:
        """Return the ids of the rows at these positions.

        positions: from 0 on.
        """
        starts = np.array([start for _, start in self._shards])
        where = np.asarray(positions, dtype=np.int64)
        shard = np.searchsorted(starts, where, side="right") - 1
        ids = np.empty(len(where), dtype=object)
        for number in np.unique(shard).tolist():
            name, start = self._shards[number]
            here = shard == number
            with pa.memory_map(str(self._writer.ids_of(name))) as file:
                column = pa.ipc.open_file(file).read_all().column("id")
                ids[here] = column.take(pa.array(where[here] - start)).to_pylist()
        return list(ids)

    def positions(self, ids: Collection[str]) -> list[int]:
        """Return the positions of the rows of these ids, ascending; ids that are not there have
        none.

        ids: of samples.
        """
        import pyarrow.compute as pc

        id_array = pa.array(sorted(ids), pa.string())
        positions: list[int] = []
        for name, start in self._shards:
            with pa.memory_map(str(self._writer.ids_of(name))) as file:
                column = pa.ipc.open_file(file).read_all().column("id")
                here = np.flatnonzero(pc.is_in(column, value_set=id_array).to_numpy())
            positions += (here + start).tolist()
        return positions

    def rows(self, need: Need, positions: Sequence[int]) -> Tensor:
        """Return a signal at these positions, (n, ...), a copy.

        need: the signal. positions: from 0 on.

        Raises:
            DataError: there is no such signal, or a block is missing or damaged.
        """
        where = np.asarray(positions, dtype=np.int64)
        out = np.empty((len(where), *self._shape(need)), dtype=self.precision)
        block = np.searchsorted(self._starts, where, side="right") - 1
        for number in np.unique(block).tolist():
            here = block == number
            records = self._map(need, number)
            out[here] = records["features"][where[here] - self._starts[number]]
        return torch.from_numpy(out)

    def blocks(self, need: Need) -> Iterator[tuple[int, Tensor]]:
        """Yield (position of its first row, a signal over the rows of a block), one by one.

        need: the signal.

        Raises:
            DataError: as `rows`.
        """
        self._shape(need)
        for number, start in enumerate(self._starts[:-1].tolist()):
            yield start, torch.from_numpy(np.array(self._map(need, number)["features"]))

    def _shape(self, need: Need) -> tuple[int, ...]:
        if need not in self.shapes:
            raise DataError(
                f"Expected the signal {need} in {self.folder} but it holds "
                f"{[str(n) for n in self.shapes]}. Compute it with `upslope score --keep`."
            )
        return self.shapes[need]

    def _map(self, need: Need, number: int) -> NDArray[np.void]:
        key = (need, number)
        if key not in self._maps:
            block = self._blocks[number]
            path = self._writer.path(need, block.shard, block.start)
            records = map_block(path, self.shapes[need], self.precision)
            if len(records) != block.rows:
                raise DataError(f"Expected {block.rows} rows in {path} but got {len(records)}.")
            self._maps[key] = records
            if len(self._maps) > MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(key)
        return self._maps[key]


def folder_of(need: Need) -> str:
    """Return the name of the folder of a signal: its name, and its options by their digest.

    need: the signal.
    """
    name = re.sub(r"[^a-z0-9-]", "-", need.name)
    if not need.options:
        return name
    return f"{name}-{hashlib.sha256(str(need).encode()).hexdigest()[:12]}"


def plain_need(need: Need) -> list[Any]:
    """Return a need as plain data, for a record. need: the signal."""
    return [need.name, dict(need.options)]


def need_of(plain: Sequence[Any]) -> Need:
    """Return the need that `plain_need` wrote down. plain: as it returned it."""
    return Need.of(str(plain[0]), **plain[1])


def blocks_of(path: Path) -> list[tuple[int, int]]:
    """Return (start, rows) of each block of a shard, once its ids were compared with their digest;
    those of earlier versions have none.

    path: of its ids.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            table.validate(full=True)
            record = from_json((table.schema.metadata or {})[_METADATA])
            blocks = [(int(start), int(rows)) for start, rows in record["blocks"]]
            ids = table.column("id").to_pylist()
        digest = json_digest([[list(block) for block in blocks], ids])
        strangers = record.keys() - {"blocks", _DIGEST}  # the digest, where its name is damaged
        if (
            strangers
            or record.get(_DIGEST, digest) != digest
            or sum(rows for _, rows in blocks) != len(ids)
        ):
            raise ValueError("its content is not what was written")
        return blocks
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise RunError(
            f"Expected the ids of a shard in {path} but the file is damaged. Remove it, and run "
            "the command that computes signals again."
        ) from error
