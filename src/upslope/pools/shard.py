"""A pool as a list of shards: each can be read alone, and gives rows with ids.

A shard is a file (Parquet, tar) or a run of files of a folder. It is the unit of work and of
resume: whoever holds a `ShardedPool`, which can be pickled, can open any shard on any machine, and
gets the same samples in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from upslope.datasets.base import Dataset
from upslope.errors import DataError
from upslope.images import Form, Mode
from upslope.pools.storage import Storage

Format = Literal["parquet", "webdataset", "folder"]
_LONGEST = 200  # characters of a file's name, of the 255 bytes that file systems allow


@dataclass(frozen=True)
class Shard:
    """A part of a pool that is read alone.

    number: its place in the pool. name: its path from the root of the pool, which no other shard
    has. path: without the scheme. size: bytes. tag: tells its content from another's, as far as the
    storage does. part: which run of files, of a folder.
    """

    number: int
    name: str
    path: str
    size: int
    tag: str
    part: int | None = None

    @property
    def file_name(self) -> str:
        """Return the name under which results of this shard are kept, without an ending."""
        name = quote(self.name, safe=" ")
        if len(name) <= _LONGEST:
            return name
        return f"{name[: _LONGEST - 17]}-{hashlib.sha256(self.name.encode()).hexdigest()[:16]}"

    @property
    def address(self) -> int:
        """Return a number that tells this shard from others, whatever their order: for seeds."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class ReadOptions:
    """How the rows of a pool are read.

    image: the column of images or arrays, or the extension in a tar. id: the column of ids. shape:
    of one array, where rows hold plain lists. mode, size: that images are brought to; `size`
    pixels square. white: the white of 16-bit images. images_at: URL that addresses of images must
    begin with; the root of the pool, if not given. per_shard: images of a folder in a shard.
    """

    image: str | None = None
    id: str | None = None
    shape: tuple[int, ...] | None = None
    mode: Mode | None = None
    size: int | None = None
    white: int | None = None
    images_at: str | None = None
    per_shard: int = 4096


@dataclass(frozen=True)
class ShardedPool:
    """The shards of a pool, and how each is read.

    url: as the user gave it. format: of the shards. root: folder that names of shards begin from,
    without the scheme. form: that encoded images are brought to; None for arrays. column: what the
    first shard's inputs are, in words; those of all others must be the same. input_shape: of one
    sample. options: how rows are read. storage: the file system. index: the file with
    the names of the images of a folder.
    """

    url: str
    format: Format
    storage: Storage
    root: str
    shards: Sequence[Shard] = field(repr=False)
    options: ReadOptions
    form: Form | None
    input_shape: tuple[int, ...]
    column: str
    index: Path | None = None

    def __len__(self) -> int:
        return len(self.shards)

    @contextmanager
    def open(self, shard: Shard) -> Iterator[Dataset]:
        """Open a shard: a data set without labels, whose file is here while the block runs.

        shard: one of `shards`.

        Raises:
            DataError: it is missing, cut short, of another schema than the first, or holds an id
                twice; the message names it.
            StorageError: it cannot be fetched.
        """
        from upslope.pools.rows import open_rows  # which imports this module

        with open_rows(self, shard) as rows:
            yield rows.dataset(self)

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
