"""The shards that a URL names, in order, without holding the samples of the pool."""

from __future__ import annotations

import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from upslope.counts import format_count
from upslope.datasets.layout import image_suffixes, is_text
from upslope.datasets.shards import expand_pattern
from upslope.errors import ConfigError, DataError
from upslope.files import write_atomically
from upslope.pools.shard import Format, ReadOptions, Shard
from upslope.pools.storage import Entry, Storage, walk

SUFFIXES: dict[Format, tuple[str, ...]] = {"parquet": (".parquet",), "webdataset": (".tar",)}
_PATTERN = re.compile(r"[*?\[]")
_TOTAL = re.compile(r"-(\d+)-of-(\d+)\.")
_MOST_NAMES = 3
FILES = pa.schema({"path": pa.string(), "size": pa.int64()})
"""Of the index of a folder: paths from the root, and bytes."""


@dataclass(frozen=True)
class Listing:
    """Shards, their format, and the folder that their names begin from."""

    format: Format
    root: str
    shards: tuple[Shard, ...]


def list_shards(
    storage: Storage,
    path: str,
    asked_format: Format | None,
    options: ReadOptions,
    index: Path | None,
) -> Listing:
    """Return the shards at a path: a file, a folder, a pattern, or a range {000..012}.

    asked_format: told by the files, if not given. index: where the names of the images of a
    folder are kept; where it is there already, the folder is not listed again.

    Raises:
        ConfigError: files of several formats, or none that is known.
        DataError: nothing there, or a shard of a range is missing.
        StorageError: the place cannot be read.
    """
    if index is not None and index.is_file() and asked_format in (None, "folder"):
        return _of_index(path, index)
    # A path on this machine may hold the characters of patterns, as "photos [2024]" does.
    as_it_is = storage.entry(path) if storage.is_local else None
    if as_it_is is None and ("{" in path or _PATTERN.search(path)):
        entries = list(_matching(storage, path))
        stem = re.split(r"[*?\[{]", path, maxsplit=1)[0]
        return _of_files(storage, posixpath.dirname(stem), entries, asked_format)
    entry = as_it_is or storage.entry(path)
    if entry is not None and not entry.is_folder:
        return _of_files(storage, posixpath.dirname(path), [entry], asked_format)
    return _of_folder(storage, path, asked_format, options, index)


def _matching(storage: Storage, pattern: str) -> Iterator[Entry]:
    for one in expand_pattern(pattern, "data"):
        if _PATTERN.search(one):
            entries = storage.glob(one)
        else:
            entry = storage.entry(one)
            entries = [] if entry is None else [entry]
        if not entries:
            raise DataError(
                f"Expected a shard at {storage.url(one)} but there is none. Look at the URL, or "
                "restore what is missing."
            )
        yield from entries


def _of_files(
    storage: Storage, root: str, entries: Sequence[Entry], asked_format: Format | None
) -> Listing:
    formats = {_format_of(e.path) for e in entries}
    if asked_format in SUFFIXES:
        format_of_all: Format = asked_format
        entries = [e for e in entries if e.path.lower().endswith(SUFFIXES[format_of_all])]
        formats = {format_of_all} if entries else set()
    if len(formats) != 1 or None in formats:
        raise ConfigError(
            f"Expected shards that all end in .parquet or all in .tar at {storage.url(root)} but "
            f"got {', '.join(e.path.rpartition('/')[2] for e in entries[:_MOST_NAMES]) or 'none'}. "
            "Narrow the pattern, or name the format with --format."
        )
    _check_total(storage, entries)
    form = next(iter(formats))
    assert form is not None  # told above
    return Listing(form, root, _shards(root, entries))


def _of_folder(
    storage: Storage,
    folder: str,
    asked_format: Format | None,
    options: ReadOptions,
    index: Path | None,
) -> Listing:
    """A folder of shards; or of images, whose names go into `index` while they are listed."""
    content = _Content(storage, folder)
    content.list_into(index, options.per_shard)
    format_of_all = content.choose_format(asked_format)
    if format_of_all != "folder":
        if index is not None:
            index.unlink(missing_ok=True)
        if asked_format is None:
            _tell(storage, folder, content.left_out, "shards")
        shards = content.shards[format_of_all]
        _check_total(storage, shards)
        return Listing(format_of_all, folder, _shards(folder, shards))
    if index is None:
        raise ConfigError(
            f"Expected a place for the names of the {content.images:,} images in "
            f"{storage.url(folder)} but got none. Give `index`, a file to keep them in."
        )
    _tell(storage, folder, content.left_out, "images")
    return _of_index(folder, index)


class _Content:
    """What lies in a folder: shards of each format, images, and other files."""

    def __init__(self, storage: Storage, folder: str):
        self._storage, self._folder = storage, folder
        self.shards: dict[Format, list[Entry]] = {"parquet": [], "webdataset": []}
        self.images = 0
        self.left_out: Counter[tuple[str, str]] = Counter()
        """What is neither: (noun, details) -> how many."""

    def list_into(self, index: Path | None, per_shard: int) -> None:
        """List the folder; the names of images go into `index`, which is there if some are."""
        if index is None:
            for _ in self._walk():
                pass
            return
        write_atomically(index, lambda to: _write_index(to, self._folder, self._walk(), per_shard))
        if not self.images:
            index.unlink()

    def _walk(self) -> Iterator[Entry]:
        """Yield the images; take note of all else on the way."""
        start, suffixes = len(self._folder.rstrip("/")), image_suffixes()
        for entry in walk(self._storage, self._folder, self.left_out):
            kind = _format_of(entry.path)
            suffix = posixpath.splitext(entry.path)[1].lower()
            if not is_text(entry.path):
                self.left_out["file", " not named in UTF-8"] += 1
            elif kind is not None:
                # What programs have not finished, or keep for themselves, as _temporary/.
                if "/_" not in entry.path[start:]:
                    self.shards[kind].append(entry)
            elif suffix in suffixes:
                self.images += 1
                yield entry
            elif not posixpath.basename(entry.path).startswith("_"):  # as _SUCCESS of Spark
                detail = f" of the kind {suffix}" if suffix else " without a suffix"
                self.left_out["file", detail] += 1

    def choose_format(self, asked_format: Format | None) -> Format:
        """Return the format to read the folder in, "folder" for images.

        Raises:
            ConfigError: there are several, and none was asked for.
            DataError: there is none, or not the one asked for.
        """
        formats = self._formats()
        if asked_format is not None:
            is_there = asked_format in formats or self.shards.get(asked_format)
            formats = [asked_format] if is_there else []
        if len(formats) == 1:
            return formats[0]
        names = " and ".join("images" if f == "folder" else f for f in formats)
        raise (ConfigError if formats else DataError)(
            "Expected shards of one format (.parquet, .tar or images) in "
            f"{self._storage.url(self._folder)} but got {names or 'none'}. "
            + ("Name the one with --format." if formats else "Look at the URL.")
        )

    def _formats(self) -> list[Format]:
        formats: list[Format] = [f for f in ("parquet", "webdataset") if self.shards[f]]
        # img2dataset puts a Parquet file of metadata beside each tar.
        parquet, tars = (_stems(self.shards[f]) for f in ("parquet", "webdataset"))
        if len(formats) == 2 and parquet == tars:
            formats = ["webdataset"]
        return [*formats, "folder"] if self.images else formats


def _tell(storage: Storage, folder: str, left_out: Counter[tuple[str, str]], read_as: str) -> None:
    """Warn of the files of a folder that are neither shards nor images of the pool."""
    if left_out:
        counts = [format_count(n, noun) + detail for (noun, detail), n in sorted(left_out.items())]
        warnings.warn(
            f"Left out of {storage.url(folder)}: {', '.join(counts)}. They are not read as "
            f"{read_as}.",
            stacklevel=2,
        )


def _write_index(to: Path, folder: str, entries: Iterator[Entry], per_shard: int) -> None:
    with (
        pa.OSFile(str(to), "wb") as file,
        pa.ipc.new_file(file, FILES.with_metadata({"root": folder})) as writer,
    ):
        names: list[str] = []
        sizes: list[int] = []

        def flush() -> None:
            if names:
                writer.write_batch(pa.record_batch([names, pa.array(sizes, pa.int64())], FILES))
                names.clear()
                sizes.clear()

        for entry in entries:
            names.append(entry.path[len(folder) :].lstrip("/"))
            sizes.append(entry.size)
            if len(names) == per_shard:
                flush()
        flush()


def _of_index(folder: str, index: Path) -> Listing:
    """The shards of a folder of images: one for each batch of the index."""
    with pa.memory_map(str(index)) as file, pa.ipc.open_file(file) as reader:
        root = (reader.schema.metadata or {}).get(b"root", b"").decode()
        if root != folder:
            raise ConfigError(
                f"Expected {index} to list {folder} but it lists {root}. Give another folder to "
                "write into."
            )
        shards = []
        for number in range(reader.num_record_batches):
            sizes = reader.get_batch(number).column(1)
            size = sum(sizes.to_pylist())
            name = f"images-{number:06d}"
            shards.append(Shard(number, name, folder, size, f"{len(sizes)} files", number))
    return Listing("folder", folder, tuple(shards))


def files_of(index: Path, part: int) -> list[str]:
    """Return the paths of the images of one shard, from the root of the pool."""
    with pa.memory_map(str(index)) as file, pa.ipc.open_file(file) as reader:
        paths: list[str] = reader.get_batch(part).column(0).to_pylist()
        return paths


def _format_of(path: str) -> Format | None:
    return next((f for f, s in SUFFIXES.items() if path.lower().endswith(s)), None)


def _stems(entries: Sequence[Entry]) -> set[str]:
    return {posixpath.splitext(entry.path)[0] for entry in entries}


def _shards(root: str, entries: Sequence[Entry]) -> tuple[Shard, ...]:
    return tuple(
        Shard(i, e.path[len(root) :].lstrip("/"), e.path, e.size, e.tag)
        for i, e in enumerate(entries)
    )


def _check_total(storage: Storage, entries: Sequence[Entry]) -> None:
    """Refuse where names such as train-00000-of-00100 say that shards are missing."""
    totals: dict[str, tuple[int, set[int]]] = {}
    for entry in entries:
        folder, name = posixpath.split(entry.path)
        match = _TOTAL.search(name)
        if match:
            key = posixpath.join(folder, f"{name[: match.start()]}-*-of-{match[2]}")
            totals.setdefault(key, (int(match[2]), set()))[1].add(int(match[1]))
    for key, (total, numbers) in totals.items():
        if len(numbers) < total:
            # A name may state any number: all that are missing may be too many to hold.
            first = list(islice((n for n in range(total) if n not in numbers), _MOST_NAMES))
            missing = total - sum(n < total for n in numbers)
            more = f" and {missing - len(first)} more" if missing > len(first) else ""
            raise DataError(
                f"Expected {total} shards {storage.url(key)}, as their names say, but "
                f"{', '.join(map(str, first))}{more} "
                f"{'is' if missing == 1 else 'are'} missing. Restore them, or give the "
                "shards that there are by a pattern."
            )
