"""Parquet files in the Hugging Face image layout: a column of {bytes, path}, a column of labels.

Files are `train-*.parquet` and `test-*.parquet` (or `validation-`, `valid-`, `val-`), in the
folder or one below it. Class names come from the metadata where `datasets` writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field

from upslope.counts import format_count
from upslope.datasets.arrays import check_labels, number_ids
from upslope.datasets.arrow import is_bytes, plain_column, read_parquet
from upslope.datasets.base import Dataset
from upslope.datasets.duplicates import array_duplicate_notes
from upslope.datasets.encoded import (
    EncodedDataset,
    Memory,
    ModeOption,
    OnError,
    SizeOption,
    materialise,
)
from upslope.datasets.image_form import White, form_of
from upslope.datasets.image_survey import survey_parts
from upslope.datasets.left_out import name_some
from upslope.datasets.missing import MissingLabels
from upslope.datasets.paths import check_all_shards, needed_root, visible
from upslope.datasets.split_labels import read_split_labels, same_names
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError, DataError
from upslope.files import from_json
from upslope.images import OPTIONS, Mode
from upslope.progress import Observer, no_progress
from upslope.reading import reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN, TEST = ("train",), ("test", "validation", "valid", "val")
IMAGES, LABELS = ("image", "img"), ("label", "fine_label", "labels")


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    image: Annotated[
        str | None, Field(description="column of images; `image` or `img`, if not given")
    ] = None,
    label: Annotated[
        str | None,
        Field(description="column of labels; `label`, `fine_label` or `labels`, if not given"),
    ] = None,
    missing_labels: MissingLabels = None,
    mode: ModeOption = None,
    size: SizeOption = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    white: White = None,
) -> Splits:
    """Parquet in the Hugging Face image layout: train-*.parquet and test-*.parquet."""
    folder = needed_root(root, "parquet", "the page of the data set on Hugging Face")
    return _open(
        folder, image, label, missing_labels, mode, size, on_error, memory, white, progress, OPTIONS
    )


def _open(
    folder: Path,
    image: str | None,
    label: str | None,
    missing_labels: Collection[str] | None,
    mode: Mode | None,
    size: int | None,
    on_error: OnError,
    memory: float,
    white: int | None,
    progress: Observer,
    options: frozenset[str],
) -> Splits:
    """Open the files in a folder; the arguments are the options of `load`, and `options` those
    that messages may advise, as of `images.Form`."""
    paths = {split: _files(folder, p) for split, p in (("train", TRAIN), ("test", TEST))}
    tables = {split: _table(files, image, label) for split, files in paths.items()}
    names, labels, notes = read_split_labels(
        {split: table.labels for split, table in tables.items()},
        {split: table.names for split, table in tables.items()},
        tables["train"].label_column,
        folder,
        missing_labels,
    )
    ids_by_split = {split: number_ids(split, len(labels[split])) for split in tables}
    cells = {split: _Cells(table.images, folder) for split, table in tables.items()}
    form, shape = form_of(
        cells["train"], ids_by_split["train"], mode, size, on_error, white, options
    )

    def open_split(split: str) -> Dataset:
        ids = ids_by_split[split]
        dataset = EncodedDataset(
            f"{folder.name}/{split}",
            ids,
            names,
            cells[split],
            check_labels(labels[split], names, ids, paths[split][0]),
            form,
            shape,
            place=f"{folder} ({split})",
        )
        return materialise(dataset, on_error, memory, progress, _digest(paths[split]))

    pool, test = open_split("train"), open_split("test")
    notes = (*notes, *_left_out_notes(folder, paths, tables["train"].left_out))
    parts = [(cells[split], ids_by_split[split]) for split in tables]
    notes += survey_parts(parts, form, on_error)
    return Splits(pool, test, notes=(*notes, *array_duplicate_notes(pool, test)))


def tiny_imagenet_32(root: Path | None = None, *, progress: Observer = no_progress) -> Splits:
    """Tiny ImageNet reduced to 32x32: 100,000 and 10,000 of 200 classes; Parquet."""
    folder = needed_root(root, "tiny-imagenet-32", "the page of the data set on Hugging Face")
    return _open(
        folder, None, None, None, "RGB", 32, "raise", 4.0, None, progress, options=frozenset()
    )


def has_files(folder: Path) -> bool:
    """True where `folder` holds both splits in this layout."""
    return all(any(_matching(folder, prefix) for prefix in p) for p in (TRAIN, TEST))


def _matching(folder: Path, prefix: str) -> list[Path]:
    return [
        path
        for pattern in (f"{prefix}-*.parquet", f"{prefix}.parquet")
        for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))
    ]


def _files(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    for prefix in prefixes:
        if files := sorted(_matching(folder, prefix)):
            return _all_shards(files)
    raise DataError(
        f"Expected files {' or '.join(f'{p}-*.parquet' for p in prefixes)} in {folder} or one "
        "folder below but there are none. Get them from the page of the data set on Hugging Face "
        "(Files, branch refs/convert/parquet); nothing is downloaded for you."
    )


def _left_out_notes(
    folder: Path, paths: Mapping[str, list[Path]], columns: Sequence[str]
) -> tuple[str, ...]:
    """Return sentences on files and columns that are not read, and on a lone validation split.

    paths: split -> its files. columns: of the files to learn from, those that are not read.
    """
    notes = []
    first = paths["test"][0].name
    if not first.startswith(TEST[0]):
        notes.append(f"The files of {first.partition('-')[0].removesuffix('.parquet')} are the "
                     "test set: there are none of test.")  # fmt: skip
    there = {*folder.glob("*.parquet"), *folder.glob("*/*.parquet")}
    others = visible(there - {path for files in paths.values() for path in files})
    if others:
        names = [path.relative_to(folder).as_posix() for path in others]
        notes.append(f"Left out {format_count(len(names), 'file')}: {name_some(names)}.")
    if columns:
        notes.append(f"Left out {format_count(len(columns), 'column')}: {name_some(columns)}.")
    return tuple(notes)


def _all_shards(files: list[Path]) -> list[Path]:
    """`files`, after checking that of `train-00000-of-00002` there are two, in one folder."""
    folders = sorted({path.parent.name for path in files})
    if len(folders) > 1:
        raise DataError(
            f"Expected the Parquet files of one data set in {files[0].parent.parent} but got those "
            f"of {len(folders)}: {', '.join(folders)}. Give the folder of one as the root."
        )
    check_all_shards(files)
    return files


class _Table(NamedTuple):
    """Both columns of a split over all its files; names: those of the classes, where stated.
    left_out: the names of its other columns."""

    images: pa.ChunkedArray
    labels: pa.ChunkedArray
    names: tuple[str, ...] | None
    label_column: str
    left_out: tuple[str, ...]


def _table(files: list[Path], image: str | None, label: str | None) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images: list[pa.ChunkedArray] = []
    labels: list[pa.ChunkedArray] = []
    names: dict[str, tuple[str, ...] | None] = {}
    label_column, left_out = "", dict[str, None]()
    for path in files:
        with reporting_damage(f"a Parquet file in {path}", "Get it again."):
            schema = pq.read_schema(path)
        image_column = _column(schema.names, image, IMAGES, "image", path)
        label_column = _column(schema.names, label, LABELS, "label", path)
        left_out |= dict.fromkeys(n for n in schema.names if n not in (image_column, label_column))
        table = read_parquet(path, [image_column, label_column])
        image_cells = plain_column(table.column(image_column))
        kind = image_cells.type
        if (
            len(table)
            and not is_bytes(kind)
            and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        ):
            raise DataError(
                f"Expected the column `{image_column}` of {path} to hold encoded images, bytes or "
                f"{{bytes, path}}, but got {kind}. Name another column with `data.image`."
            )
        labels.append(plain_column(table.column(label_column)))
        images.append(image_cells)
        names[path.name] = _names_in(table.schema, label_column)
    return _Table(
        _join(images, files),
        _join(labels, files),
        same_names(names, files[0].parent),
        label_column,
        tuple(left_out),
    )


def _join(columns: list[pa.ChunkedArray], files: list[Path]) -> pa.ChunkedArray:
    """One column of those of all files, in the widest of their types; DataError where they have
    none in common."""
    import pyarrow as pa

    tables = [pa.table({"column": column}) for column in columns]
    try:
        return pa.concat_tables(tables, promote_options="permissive").column("column")
    except pa.ArrowException as error:
        raise DataError(
            f"Expected columns of the same types in {files[0]} and the files beside it but: "
            f"{error}."
        ) from error


def _digest(files: list[Path]) -> str:
    """Of the content of all files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _column(
    names: list[str], column: str | None, usual: tuple[str, ...], what: str, path: Path
) -> str:
    if column is not None and column not in names:
        raise ConfigError(
            f"Expected `data.{what}` to name a column of {path} but got {column!r}; it has {names}."
        )
    for name in (column,) if column else usual:
        if name in names:
            return name
    raise DataError(
        f"Expected a column {' or '.join(f'`{u}`' for u in usual)} in {path} but got {names}. Name "
        f"it with `data.{what}`."
    )


def _names_in(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel feature, which `datasets` writes as JSON into the metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = from_json(text)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None  # another feature type, which states no names
    return tuple(str(name) for name in names)


@dataclass(frozen=True, eq=False)
class _Cells:
    """position -> the encoded bytes, or the file beside it where only a path is stored."""

    images: pa.ChunkedArray
    folder: Path

    def __call__(self, position: int) -> bytes | Path:
        value = self.images[position].as_py()
        if isinstance(value, dict):
            content = value.get("bytes")
            value = content if content is not None else value.get("path")
        if isinstance(value, str):
            return self.folder / value
        return value if isinstance(value, bytes) else b""
