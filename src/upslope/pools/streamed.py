"""A streamed Hugging Face data set as a pool: its shards are read one by one, none is listed.

stream = datasets.load_dataset("parquet", data_files=..., split="train", streaming=True)
pool = stream_pool(stream, "photos")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from upslope.datasets.base import Dataset
from upslope.errors import ConfigError, DataError
from upslope.pools.rows import Rows, rows_of_parquet, temporary_file
from upslope.pools.shard import ReadOptions, Shard, ShardFiles
from upslope.pools.sharded_pool import ShardedPool
from upslope.pools.storage import Patience, Storage, StorageError
from upslope.reading import said

_NETWORK = ("aiohttp", "httpcore", "httpx", "httpx2", "requests", "urllib3")
"""Packages by which streams are read, whose errors of the network are no OSErrors."""
BATCH = 1000
"""Rows that are taken from the stream at once."""


@dataclass(frozen=True)
class StreamedPool(ShardedPool):
    """A pool whose shards are those of a stream. stream: a `datasets.IterableDataset`."""

    stream: Any = field(default=None, repr=False)

    @contextmanager
    def open(self, shard: Shard) -> Iterator[Dataset]:
        """Yield a shard as a data set, whose rows lie in a file while the block runs.

        shard: one of `shards`.

        Raises:
            DataError: its rows are not those of a pool, or unlike the first shard's.
            StorageError: the stream fails.
        """
        with _open_rows(self, self.stream, shard) as rows:
            if rows is None:
                inputs = np.empty((0, *self.input_shape), np.uint8)
                rows = Rows((), inputs, self.column, f"{self.url}, {shard.name}")
            yield rows.dataset(self.column, self.input_shape, self.form)


def stream_pool(stream: Any, name: str, *, options: ReadOptions | None = None) -> StreamedPool:
    """Return the pool of a streamed Hugging Face data set, for `scoring.score_pool`.

    The shards are those of the stream (`num_shards`), mostly a file each. A shard that is open lies
    in a file of the cache folder, and its rows in memory, as those of a Parquet shard do. Rows must
    come in the same order each time: take no shuffled stream.

    stream: a `datasets.IterableDataset`, of one split. name: of the pool, which goes into names of
    shards, and into ids where there is no column of ids. options: how rows are read.

    Raises:
        ConfigError: no such stream, or addresses of images without `options.images_at`.
        DataError: nothing in it, or a first shard that cannot be read.
        StorageError: the stream fails.
    """
    if not hasattr(stream, "num_shards") or not hasattr(stream, "with_format"):
        raise ConfigError(
            "Expected a streamed data set of one split (`load_dataset(..., split=..., "
            f"streaming=True)`) but got {type(stream).__name__}."
        )
    count = int(stream.num_shards)
    shards = tuple(
        Shard(i, f"{name}-{i:05d}-of-{count:05d}", "", 0, "streamed") for i in range(count)
    )
    options = options or ReadOptions()
    # Nothing is read from the storage but images at `images_at`.
    storage = Storage("file", {}, Patience())
    files = ShardFiles(f"stream:{name}", "parquet", storage, "", shards, options, None)
    for shard in shards:
        with _open_rows(files, stream, shard) as rows:
            if rows is None:
                continue
            if rows.column.startswith("addresses") and options.images_at is None:
                raise ConfigError(
                    f"Expected `images_at`, the folder or bucket of the images of {files.url}, as "
                    "its rows hold addresses, but got none."
                )
            form, shape = rows.form(options)
            return StreamedPool(
                **vars(files), form=form, input_shape=shape, column=rows.column, stream=stream
            )
    raise DataError(f"Expected samples in {files.url} but its shards are empty.")


@contextmanager
def _open_rows(files: ShardFiles, stream: Any, shard: Shard) -> Iterator[Rows | None]:
    """Yield the rows of a shard, which lie in a file while the block runs; None if it has none."""
    with temporary_file(shard) as path:
        part = stream.shard(num_shards=len(files), index=shard.number)
        place = f"{files.url}, {shard.name}"
        yield rows_of_parquet(files, shard, path, place) if _write(part, path, place) else None


def _write(part: Any, path: Path, place: str) -> int:
    """Write the rows of a shard of a stream into a Parquet file, and return how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, rows = None, 0
    try:
        for table in part.with_format("arrow").iter(batch_size=BATCH):
            writer = writer or pq.ParquetWriter(path, table.schema, compression="none")
            writer.write_table(table.cast(writer.schema))
            rows += len(table)
    except Exception as error:
        if isinstance(error, OSError) or _package_of(error) in _NETWORK:
            raise StorageError(  # of the network, of the source, or of this disk: it says which
                f"Expected to read {place} but the stream failed: {said(error)}. The same call "
                "goes on with this shard."
            ) from error
        if not isinstance(error, pa.ArrowException | ValueError):
            raise  # of what the stream maps
        raise DataError(
            f"Expected rows of one schema in {place} but the stream is damaged, or gave others: "
            f"{error}"
        ) from error
    finally:
        if writer is not None:
            writer.close()
    return rows


def _package_of(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]
