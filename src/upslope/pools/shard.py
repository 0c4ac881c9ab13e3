"""The shards of a pool: which there are, where they lie, and how their rows are read.

A shard is a file (Parquet, tar) or a run of files of a folder. It is read alone, and is the unit of
work and of resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from upslope.images import Mode
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
class ShardFiles:
    """The shards of a pool as files, none of which need have been opened.

    url: as the user gave it. format: of the shards. storage: the file system. root: folder that
    names of shards begin from, without the scheme. options: how rows are read. index: the file with
    the names of the images of a folder; None of other pools.
    """

    url: str
    format: Format
    storage: Storage
    root: str
    shards: Sequence[Shard] = field(repr=False)
    options: ReadOptions
    index: Path | None

    def __len__(self) -> int:
        return len(self.shards)
