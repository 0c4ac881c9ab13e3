"""Parquet files in the Hugging Face image layout: a column of {bytes, path}, a column of labels.

Files are `train-*.parquet` and `test-*.parquet` (or `validation-`, `valid-`, `val-`), in the
folder or one below it. Class names come from the metadata where `datasets` writes them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN, Labels, check_labels, numbered
from upslope.datasets.base import Dataset, Splits
from upslope.datasets.encoded import (
    EncodedDataset,
    Memory,
    ModeOption,
    OnError,
    SizeOption,
    White,
    form_of,
    materialise,
)
from upslope.datasets.files import needed_root
from upslope.errors import ConfigError, DataError
from upslope.progress import Observer, silent

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN, TEST = ("train",), ("test", "validation", "valid", "val")
IMAGES, LABELS = ("image", "img"), ("label", "fine_label", "labels")


def load(
    root: Path | None = None,
    *,
    progress: Observer = silent,
    image: Annotated[
        str | None, Field(description="column of images; `image` or `img`, if not given")
    ] = None,
    label: Annotated[
        str | None,
        Field(description="column of labels; `label`, `fine_label` or `labels`, if not given"),
    ] = None,
    mode: ModeOption = None,
    size: SizeOption = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    white: White = None,
) -> Splits:
    """Parquet in the Hugging Face image layout: train-*.parquet and test-*.parquet."""
    folder = needed_root(root, "parquet", "the page of the data set on Hugging Face")
    paths = {split: _files(folder, p) for split, p in (("train", TRAIN), ("test", TEST))}
    tables = {split: _table(files, image, label) for split, files in paths.items()}
    names = _class_names(tables)
    source, ids = _Cells(tables["train"][0], folder), numbered("train", len(tables["train"][1]))
    form, shape = form_of(source, ids, mode, size, on_error, white)

    def open_split(split: str) -> Dataset:
        images, labels, _, path = tables[split]
        ids = numbered(split, len(labels))
        checked = check_labels(labels, names, ids, path)
        encoded = EncodedDataset(
            f"{folder.name}/{split}", ids, names, _Cells(images, folder), checked, form, shape
        )
        return materialise(encoded, on_error, memory, progress, _digest(paths[split]))

    return Splits(pool=open_split("train"), test=open_split("test"))


def tiny_imagenet_32(root: Path | None = None, *, progress: Observer = silent) -> Splits:
    """Tiny ImageNet reduced to 32x32: 100,000 and 10,000 of 200 classes; Parquet."""
    needed_root(root, "tiny-imagenet-32", "the page of the data set on Hugging Face")
    return load(root, progress=progress, mode="RGB", size=32)


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
        if found := sorted(_matching(folder, prefix)):
            return _all_shards(found)
    raise DataError(
        f"Expected files {' or '.join(f'{p}-*.parquet' for p in prefixes)} in {folder} or one "
        "folder below but there are none. Get them from the page of the data set on Hugging Face "
        "(Files, branch refs/convert/parquet); nothing is downloaded for you."
    )


def _all_shards(found: list[Path]) -> list[Path]:
    """`found`, after checking that of `train-00000-of-00002` there are two, in one folder."""
    folders = sorted({path.parent.name for path in found})
    if len(folders) > 1:
        raise DataError(
            f"Expected the Parquet files of one data set in {found[0].parent.parent} but got those "
            f"of {len(folders)}: {', '.join(folders)}. Give the folder of one as the root."
        )
    stated = found[0].stem.rpartition("-of-")[2]
    if stated.isdigit() and len(found) != int(stated):
        raise DataError(
            f"Expected {int(stated)} files, as {found[0].name} says, in {found[0].parent} but got "
            f"{len(found)}: {', '.join(path.name for path in found)}. Get the missing ones."
        )
    return found


_Table = tuple[Any, Labels, "tuple[str, ...] | None", Path]


def _table(files: list[Path], image: str | None, label: str | None) -> _Table:
    """(images, labels, class names if stated, first file): both columns over all the files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images: list[pa.ChunkedArray] = []
    labels: list[Labels] = []
    names: tuple[str, ...] | None = None
    for path in files:
        try:
            schema = pq.read_schema(path)
            image_column = _column(schema.names, image, IMAGES, "image", path)
            label_column = _column(schema.names, label, LABELS, "label", path)
            table = pq.read_table(path, columns=[image_column, label_column])
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"Expected a Parquet file in {path} but reading it failed: {error}. Get it again."
            ) from error
        kind = table.schema.field(image_column).type
        if not pa.types.is_binary(kind) and not (
            pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        ):
            raise DataError(
                f"Expected the column `{image_column}` of {path} to hold encoded images, bytes or "
                f"{{bytes, path}}, but got {kind}. Name another column with `image`."
            )
        column = table.column(label_column)
        if not pa.types.is_integer(column.type):
            raise DataError(
                f"Expected the column `{label_column}` of {path} to hold integers but got "
                f"{column.type}. Name another column with `label`."
            )
        labels.append(column.fill_null(UNKNOWN).to_numpy().astype(np.int64))
        images.append(table.column(image_column))
        names = names or _names_in(table.schema, label_column)
    chunks = [chunk for column in images for chunk in column.chunks]
    return pa.chunked_array(chunks), np.concatenate(labels), names, files[0]


def _digest(files: list[Path]) -> str:
    """Of the content of all files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _column(
    names: list[str], wanted: str | None, usual: tuple[str, ...], what: str, path: Path
) -> str:
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"Expected `{what}` to name a column of {path} but got {wanted!r}; it has {names}."
        )
    for name in (wanted,) if wanted else usual:
        if name in names:
            return name
    raise DataError(
        f"Expected a column {' or '.join(f'`{u}`' for u in usual)} in {path} but got {names}. Name "
        f"it with the option `{what}`."
    )


def _names_in(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel feature, which `datasets` writes as JSON into the metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None  # another feature type, which states no names
    return tuple(str(name) for name in names)


def _class_names(tables: dict[str, _Table]) -> tuple[str, ...]:
    stated = tables["train"][2] or tables["test"][2]
    if stated is not None:
        return stated
    highest = max(int(labels.max(initial=1)) for _, labels, _, _ in tables.values())
    return tuple(str(i) for i in range(highest + 1))


@dataclass(frozen=True, eq=False)
class _Cells:
    """position -> the encoded bytes, or the file beside it where only a path is stored."""

    images: pa.ChunkedArray
    folder: Path

    def __call__(self, position: int) -> bytes | Path:
        value = self.images[position].as_py()
        if isinstance(value, dict):
            found = value.get("bytes")
            value = found if found is not None else value.get("path")
        if isinstance(value, str):
            return self.folder / value
        return value if isinstance(value, bytes) else b""
