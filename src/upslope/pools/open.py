"""Open a pool of shards by its URL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upslope.datasets.image_form import MissingImageError
from upslope.errors import ConfigError, DataError
from upslope.pools.listing import list_shards
from upslope.pools.rows import open_rows
from upslope.pools.shard import Format, ReadOptions, ShardFiles
from upslope.pools.sharded_pool import ShardedPool
from upslope.pools.storage import Patience, Storage, split_url

FORMATS = ("parquet", "webdataset", "folder")


def open_pool(
    url: str,
    *,
    format: Format | None = None,
    options: ReadOptions | None = None,
    index: Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
    patience: Patience | None = None,
) -> ShardedPool:
    """Return the shards at a URL, and how they are read, by what the first of them holds.

    url: of a folder, a file, a pattern (`*.parquet`) or a range (`{000..012}.tar`), at file://,
    s3://, gs://, az:// or hf://, or a path. format: of the shards, where files of several lie
    there. options: how rows are read. index: where the names of the images of a folder are kept.
    storage_options: of fsspec's file system, recorded nowhere. patience: with reads that fail.

    Raises:
        ConfigError: a URL that is not read, or options that do not fit.
        DataError: nothing there, a shard of a range that is missing, or a first shard that cannot
            be read.
        StorageError: the place refuses, or fails again and again.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> images = pa.array([[0] * 192] * 4, pa.list_(pa.uint8(), 192))
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("a", "b"):
        ...         table = pa.table({"id": [f"{name}{i}" for i in range(4)], "image": images})
        ...         pq.write_table(table, f"{folder}/{name}.parquet")
        ...     pool = open_pool(folder, options=ReadOptions(shape=(3, 8, 8)))
        ...     with pool.open(pool.shards[1]) as rows:
        ...         len(pool), rows.ids, tuple(rows.inputs([0]).shape)
        (2, ('b0', 'b1', 'b2', 'b3'), (1, 3, 8, 8))
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"Expected a format of {', '.join(FORMATS)} but got {format!r}.")
    options = options or ReadOptions()
    scheme, path = split_url(url)
    storage = Storage(scheme, dict(storage_options or {}), patience or Patience())
    listing = list_shards(storage, path, format, options, index)
    files = ShardFiles(url, listing.format, storage, listing.root, listing.shards, options, index)
    problem = DataError(f"Expected samples in {url} but its shards are empty.")
    for shard in files.shards:
        with open_rows(files, shard) as rows:
            if not rows.ids:
                continue
            try:
                form, shape = rows.form(options)
            except MissingImageError as error:  # its empty cells tell nothing of other shards
                problem = error
                continue
            return ShardedPool(**vars(files), form=form, input_shape=shape, column=rows.column)
    raise problem
