"""The rows of one shard: ids, and encoded images, arrays or addresses of images.

Shards are of strangers: what a file says of its size is checked before memory is taken, tar
archives are read by `tar_index` alone, and addresses lead nowhere but below the root of the pool,
or where the user says.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from upslope.datasets.arrays import UNKNOWN, Array, ArrayDataset, finite_floats
from upslope.datasets.base import Dataset
from upslope.datasets.encoded import EncodedDataset, Files
from upslope.datasets.image_form import form_of
from upslope.datasets.left_out import LeftOut
from upslope.datasets.paths import cache_folder
from upslope.datasets.tar_index import read_members
from upslope.datasets.tar_samples import TarImages, locate_images, read_samples
from upslope.errors import ConfigError, DataError, UpslopeError
from upslope.files import disk_errors, make_folder
from upslope.images import Form
from upslope.leftovers import process_mark, sweep
from upslope.pools.listing import files_of
from upslope.pools.parquet_rows import NO_IMAGES, NO_ROWS, Cells, empty_cell, read_rows
from upslope.pools.shard import ReadOptions, Shard, ShardFiles
from upslope.pools.storage import Storage, split_url, without_user
from upslope.progress import no_progress
from upslope.reading import read_limit

LOOKED_AT = 64
"""Images of the first shard by which the form of all is told; in a bucket, each is fetched."""

Source = Callable[[int], bytes | Path]


@dataclass(frozen=True)
class Rows:
    """The rows of a shard, in order: encoded images by position, or one array of them.

    ids, inputs: one of each per row. column: what the inputs are, in words. place: the URL of the
    shard.
    """

    ids: tuple[str, ...]
    inputs: Source | Array
    column: str
    place: str

    def form(self, options: ReadOptions) -> tuple[Form | None, tuple[int, ...]]:
        """Return (form of images, input shape) as the options say, or as the first image is.

        Raises:
            DataError: no image can be read, or the white of 16-bit images must be given.
        """
        if isinstance(self.inputs, np.ndarray):
            return None, tuple(self.inputs.shape[1:])
        return form_of(
            self.inputs, self.ids[:LOOKED_AT], options.mode, options.size, "skip", options.white
        )

    def dataset(self, column: str, input_shape: tuple[int, ...], form: Form | None) -> Dataset:
        """Return the rows as a data set without labels, all of the pool's shape and form.

        column, input_shape, form: as of `ShardedPool`.

        Raises:
            DataError: arrays of another shape or type than the first shard's.
        """
        labels = np.full(len(self.ids), UNKNOWN, dtype=np.int64)
        if not self.ids:  # what writers leave as the type or the shape says nothing
            none = np.empty((0, *input_shape), dtype=np.uint8)
            return ArrayDataset(self.place, (), (), none, labels, resident=False, place=self.place)
        no_images = self.column == NO_IMAGES and form is not None  # each is told when it is read
        if not no_images and _kind_of(self.column) != _kind_of(column):
            raise DataError(
                f"Expected {self.place} to hold {column}, as the first shard does, but it "
                f"holds {self.column}. Write it again, or leave it out."
            )
        if isinstance(self.inputs, np.ndarray):
            inputs = self.inputs
            if inputs.shape[1:] != input_shape:
                raise DataError(
                    f"Expected arrays of shape {input_shape} in {self.place}, as in the first "
                    f"shard, but got {inputs.shape[1:]}. Write it again, or leave it out."
                )
            return ArrayDataset(
                self.place, self.ids, (), inputs, labels, resident=False, place=self.place
            )
        assert form is not None  # by the same words, the first shard holds images
        return EncodedDataset(
            self.place,
            self.ids,
            (),
            self.inputs,
            labels,
            form,
            input_shape,
            place=self.place,
        )


def _kind_of(column: str) -> str:
    """Return what a column holds, whatever the width of offsets into its cells: polars writes other
    ones than pandas.
    """
    return column.replace("large_binary", "binary").replace("large_string", "string")


@contextmanager
def open_rows(files: ShardFiles, shard: Shard) -> Iterator[Rows]:
    """Open the rows of a shard; of a pool elsewhere, its file is here while the block runs.

    files, shard: the shards of the pool, and one of them.

    Raises: as `ShardedPool.open`.
    """
    storage, place = files.storage, files.storage.url(shard.path)
    if files.format == "folder":
        assert files.index is not None  # both as `list_shards` made them
        assert shard.part is not None
        ids = files_of(files.index, shard.part)
        images: Source = Addresses(storage, files.root, files.root, ids, shard.name)
        if storage.is_local:  # files of a listing may be links to anywhere, unlike addresses
            images = Files(Path(files.root), ids)
        yield _check_rows(Rows(tuple(ids), images, "images", f"{place} ({shard.name})"))
        return
    with _here(storage, shard) as path:
        try:
            rows = _read(files, shard, path, place)
        except UpslopeError as error:
            if storage.is_local:
                raise
            raise type(error)(str(error).replace(str(path), place)) from error
        _check_as_listed(storage, shard, place)
        yield rows


def _check_as_listed(storage: Storage, shard: Shard, place: str) -> None:
    """Refuse a shard that was written again since it was listed: parts of it may be of either
    content, and its scores would be recorded as those of the former one."""
    now = storage.entry(shard.path)
    if now is None or (now.size, now.tag) != (shard.size, shard.tag):
        is_now = f"it has {now.size:,} bytes ({now.tag})" if now else "it is gone"
        raise DataError(
            f"Expected {place} to stay as it was listed, of {shard.size:,} bytes ({shard.tag}), "
            f"but {is_now} now that it is read. Run the same command again once nothing writes to "
            "the pool."
        )


def _read(files: ShardFiles, shard: Shard, path: Path, place: str) -> Rows:
    if files.format == "parquet":
        return rows_of_parquet(files, shard, path, place)
    if next(read_members(path), None) is None:
        return Rows((), np.empty(0, dtype=np.uint8), NO_ROWS, place)
    samples = read_samples([path], LeftOut(), no_progress)
    (_, offset, size), _ = locate_images(samples, files.options.image, "raise")
    shard_of = np.zeros(len(size), dtype=np.int32)
    images = TarImages([path], samples.stamps, shard_of, offset, size)
    return _check_rows(Rows(tuple(samples.ids), images, "images", place))


def rows_of_parquet(files: ShardFiles, shard: Shard, path: Path, place: str) -> Rows:
    """Return the rows of a shard that lies in a Parquet file.

    files, shard: the shards of the pool, and one of them. path: of the file. place: of the shard,
    for messages.

    Raises:
        DataError: as `ShardedPool.open`.
    """
    ids, cells, column = read_rows(path, shard.name, files.options)
    inputs: Source | Array
    if isinstance(cells, np.ndarray):
        inputs = cells if cells.dtype == np.uint8 else finite_floats(cells, path)
    elif not cells.holds_addresses:
        inputs = cells
    else:
        texts = [str(cells(i)) for i in range(len(ids))]
        inputs = addresses_of(files.storage, files.root, files.options.images_at, texts, shard.name)
    return _check_rows(Rows(ids, inputs, column, place))


def _check_rows(rows: Rows) -> Rows:
    """Refuse ids that are empty or there twice."""
    earlier_ids: set[str] = set()
    for id_ in rows.ids:
        if not id_ or id_ in earlier_ids:
            raise DataError(
                f"Expected an id of its own for each row of {rows.place} but "
                f"{f'{id_!r} is there twice' if id_ else 'one is empty'}. Name another column "
                "with --id, or correct the shard."
            )
        earlier_ids.add(id_)
    return rows


@contextmanager
def _here(storage: Storage, shard: Shard) -> Iterator[Path]:
    """Yield the path of a shard on this machine: where it lies, or of a copy for a while."""
    if storage.is_local:
        if not Path(shard.path).is_file():
            raise DataError(f"Expected the shard {shard.path} but there is no such file.")
        yield Path(shard.path)
        return
    with temporary_file(shard) as path:
        storage.fetch(shard.path, shard.size, path)
        yield path


@contextmanager
def temporary_file(shard: Shard) -> Iterator[Path]:
    """Yield an empty file for the rows of a shard, which is removed when the block ends.

    shard: one of a pool whose shards do not lie here.

    Raises:
        RunError: the cache folder cannot be written.
    """
    folder = cache_folder() / "shards"
    with disk_errors(folder):
        make_folder(folder)
        sweep(folder)  # files of processes that were killed
        handle, name = tempfile.mkstemp(f".{process_mark()}.part", f".{shard.number}-", folder)
        os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Addresses:
    """position -> the image at an address below a folder: its path, or its bytes from a bucket.

    storage, addresses: where, and what. shard: the name of their shard. root: what addresses
    without a scheme begin from. within: the folder that none may leave. Both are without the
    scheme.
    """

    storage: Storage
    root: str
    within: str
    addresses: Sequence[str]
    shard: str

    def __call__(self, position: int) -> bytes | Path:
        """Return the path of an image, or its bytes.

        Raises:
            DataError: it is not there, or its address leads elsewhere.
            StorageError: it cannot be fetched.
        """
        address = self.addresses[position]
        if not address:
            raise empty_cell(position, f" of the addresses of images, {self.shard}")
        path = self._path(address)
        if self.storage.is_local:
            real = _follow_links(path) if path else None
            if real is not None and real.is_relative_to(Path(self.within).resolve()):
                return real
        elif posixpath.normpath(path) == path and path.startswith(f"{self.within.rstrip('/')}/"):
            return self.storage.read(path, read_limit())
        raise DataError(
            f"Expected addresses of images below {self.storage.url(self.within)} but got "
            f"{without_user(address)[:200]!r}. Where they are meant to be read from elsewhere, say "
            "from where: --images-at URL."
        )

    def _path(self, address: str) -> str:
        """Return the path that an address names in the storage; "" where it names none there."""
        if "://" not in address:
            return posixpath.join(self.root, address)
        try:
            scheme, path = split_url(address)
        except ConfigError:  # a cell, unlike an option, may be left out
            return ""
        return path if scheme == self.storage.scheme else ""


def _follow_links(path: str) -> Path | None:
    """Return a path behind all links, so that none leads out; None of what no file can be called.

    Raises:
        DataError: links that lead to themselves.
    """
    try:
        return Path(path).resolve()
    except ValueError:  # a zero byte
        return None
    except (RuntimeError, OSError) as error:
        raise DataError(f"Expected an image at {path} but its links lead nowhere.") from error


def addresses_of(
    storage: Storage, root: str, images_at: str | None, addresses: Sequence[str], shard: str
) -> Addresses:
    """Return what reads images by the addresses in a column.

    storage, root: of the pool. images_at: the option. addresses: the cells. shard: its name.

    Raises:
        ConfigError: `images_at` is no URL that is read.
    """
    if images_at is None:
        return Addresses(storage, root, root, addresses, shard)
    scheme, path = split_url(images_at)
    if not path.strip("/"):
        raise ConfigError(
            f"Expected --images-at to name a bucket or a folder but got {images_at!r}."
        )
    elsewhere = storage if scheme == storage.scheme else Storage(scheme, {}, storage.patience)
    return Addresses(elsewhere, path, path, addresses, shard)


__all__ = ["Addresses", "Cells", "Rows", "addresses_of", "open_rows", "rows_of_parquet"]
