"""A pool of shards: each opens as a data set without labels.

Whoever holds a `ShardedPool`, which can be pickled, can open any shard on any machine, and gets the
same samples in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from upslope.datasets.base import Dataset
from upslope.errors import DataError
from upslope.images import Form
from upslope.pools.rows import open_rows
from upslope.pools.shard import Shard, ShardFiles


@dataclass(frozen=True)
class ShardedPool(ShardFiles):
    """The shards of a pool, and what the samples of each are, as those of the first shard.

    form: that encoded images are brought to; None for arrays. input_shape: of one sample. column:
    what the inputs are, in words. The other fields are those of `ShardFiles`.
    """

    form: Form | None
    input_shape: tuple[int, ...]
    column: str

    @contextmanager
    def open(self, shard: Shard) -> Iterator[Dataset]:
        """Open a shard: a data set without labels, whose file is here while the block runs.

        shard: one of `shards`.

        Raises:
            DataError: it is missing, cut short, of another schema than the first, or holds an id
                twice; the message names it.
            StorageError: it cannot be fetched.
        """
        with open_rows(self, shard) as rows:
            yield rows.dataset(self.column, self.input_shape, self.form)

    def check_unchanged(self, shard: Shard, size: int, tag: str) -> None:
        """Raise DataError where a shard is not the one of which a result is there already.

        size, tag: those of the shard when the result was computed.
        """
        if (size, tag) != (shard.size, shard.tag):
            raise DataError(
                f"Expected {self.storage.url(shard.path)} to be as it was when it was scored "
                f"({size:,} bytes, {tag}) but it has changed ({shard.size:,} bytes, {shard.tag}). "
                "Bring the former one back, or score into another folder."
            )
