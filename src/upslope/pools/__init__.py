"""Pools larger than memory: shards by URL, each read alone, rows with ids.

pool = open_pool("s3://bucket/photos")
for shard in pool.shards:
    with pool.open(shard) as rows:          # a data set without labels
        rows.ids, rows.inputs([0, 1])
"""

from upslope.pools.open import FORMATS, open_pool
from upslope.pools.shard import Format, ReadOptions, Shard
from upslope.pools.sharded_pool import ShardedPool
from upslope.pools.storage import Patience, Storage, StorageError
from upslope.pools.streamed import StreamedPool, stream_pool

__all__ = [
    "FORMATS",
    "Format",
    "Patience",
    "ReadOptions",
    "Shard",
    "ShardedPool",
    "Storage",
    "StorageError",
    "StreamedPool",
    "open_pool",
    "stream_pool",
]
