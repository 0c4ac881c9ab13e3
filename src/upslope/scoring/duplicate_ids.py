"""Find an id that is in two shards, without holding the ids of the pool.

Each id's hash goes to one of several files on disk by its first bits, with shard and row; equal
hashes then lie in one file, which fits into memory. Of equal hashes the ids themselves decide.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from upslope.datasets.arrow import read_parquet
from upslope.errors import DataError
from upslope.files import disk_errors
from upslope.leftovers import process_mark, sweep
from upslope.reading import reporting_damage

BUCKET = 1 << 18
"""Ids whose hashes are compared at once, up to 2^26 ids: 4 MiB of records, 10 while they are
sorted, less than a shard takes, so that the memory of a pool does not depend on its length."""
_RECORD = np.dtype([("hash", "<u8"), ("shard", "<u4"), ("row", "<u4")])
_MOST = 256  # files open at once


def check_distinct(names: Sequence[str], files: Sequence[Path], folder: Path) -> None:
    """Raise DataError where two rows of the pool have one id; it names the id and both shards.

    names: of the shards. files: Parquet files with a column `id`, one for each shard. folder: where
    the hashes lie meanwhile: 16 bytes per id.
    """
    total = sum(map(_count_rows, files))
    bits = (min(_MOST, max(1, -(-total // BUCKET))) - 1).bit_length()
    sweep(folder, ".ids-*.part")  # of processes that were killed
    suffix = f".{process_mark()}.part"
    with (
        disk_errors(folder),
        tempfile.TemporaryDirectory(suffix, ".ids-", folder) as place,
    ):
        buckets = [Path(place) / str(i) for i in range(1 << bits)]
        handles = [bucket.open("wb") for bucket in buckets]
        try:
            for number, file in enumerate(files):
                records = _records(_ids(file), number)
                of = records["hash"] >> np.uint64(64 - bits) if bits else np.zeros(len(records))
                for bucket in np.unique(of).astype(int).tolist():
                    handles[bucket].write(records[of == bucket].tobytes())
        finally:
            for handle in handles:
                handle.close()
        for bucket in buckets:
            _compare(np.fromfile(bucket, dtype=_RECORD), names, files)


def _count_rows(file: Path) -> int:
    import pyarrow.parquet as pq

    with reporting_damage(
        f"the scores of a shard in {file}", "Remove it, and run the same command again."
    ):
        return int(pq.read_metadata(file).num_rows)


def _ids(file: Path) -> list[str]:
    ids: list[str] = read_parquet(file, ["id"]).column("id").to_pylist()
    return ids


def _records(ids: Sequence[str], shard: int) -> np.ndarray:
    records = np.empty(len(ids), dtype=_RECORD)
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    records["hash"] = np.frombuffer(digests, dtype="<u8")
    records["shard"], records["row"] = shard, np.arange(len(ids))
    return records


def _compare(records: np.ndarray, names: Sequence[str], files: Sequence[Path]) -> None:
    records = records[np.argsort(records["hash"], kind="stable")]
    for place in np.flatnonzero(records["hash"][1:] == records["hash"][:-1]).tolist():
        one, other = records[place], records[place + 1]
        first = _ids(files[one["shard"]])[one["row"]]
        second = _ids(files[other["shard"]])[other["row"]]
        if first == second:
            raise DataError(
                f"Expected each id once in the pool but {first!r} is in {names[one['shard']]!r} "
                f"and in {names[other['shard']]!r}. Put the names of shards before ids with "
                "--ids-by-shard, or correct the shards; what is scored stays."
            )
