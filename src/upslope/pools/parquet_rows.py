"""The rows of a Parquet shard: ids, and a column of encoded images, of arrays, or of addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.datasets.arrays import Array
from upslope.datasets.arrow import is_bytes, is_list, is_text, plain_column, read_parquet, texts_of
from upslope.errors import DataError
from upslope.pools.shard import ReadOptions
from upslope.reading import check_regular, reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "pixels", "features", "path", "url")
"""Usual names of the column of inputs, the first that is there is taken."""
IDS = ("id", "key", "__key__", "uid")
_ADVICE = "Get it again, or leave it out."


@dataclass(frozen=True, eq=False)
class Cells:
    """position -> the bytes of an encoded image, or its address.

    column: the cells. holds_addresses: they are text.
    """

    column: pa.ChunkedArray
    holds_addresses: bool

    def __call__(self, position: int) -> Any:
        """Return the bytes, or the address as text; empty where the cell is."""
        value = self.column[position].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        return value if value is not None else ("" if self.holds_addresses else b"")


def read_rows(
    path: Path, name: str, options: ReadOptions
) -> tuple[tuple[str, ...], Cells | Array, str]:
    """Return (ids, inputs, what the inputs are in words) of a Parquet file.

    name: of the shard; without a column of ids, they are NAME#0, NAME#1 and so on.

    Raises:
        DataError: a damaged file, or one without such a column.
    """
    import pyarrow.parquet as pq

    with reporting_damage(f"a Parquet file in {path}", _ADVICE):
        check_regular(path)
        names = pq.read_schema(path).names
    image = _column(names, options.image, IMAGES, "--image", path)
    id_ = options.id or next((n for n in IDS if n in names and n != image), None)
    if id_ is not None and id_ not in names:
        raise DataError(f"Expected the column {id_!r} of ids in {path} but it has {names}.")
    table = read_parquet(path, [image, *([id_] if id_ else [])])
    if id_ is None:
        ids = tuple(f"{name}#{i}" for i in range(len(table)))
    else:
        texts = texts_of(plain_column(table.column(id_)), f"ids in the column {id_!r} of {path}")
        ids = tuple(text or "" for text in texts)
    inputs, words = _inputs(table.column(image), image, path, options)
    return ids, inputs, words


def _column(
    names: list[str], name_option: str | None, usual: tuple[str, ...], option: str, path: Path
) -> str:
    for name in (name_option,) if name_option else usual:
        if name in names:
            return name
    wanted_words = (
        repr(name_option) if name_option else f"{', '.join(usual)} (or one named with {option})"
    )
    raise DataError(f"Expected a column {wanted_words} in {path} but it has {names}.")


def _inputs(
    column: pa.ChunkedArray, name: str, path: Path, options: ReadOptions
) -> tuple[Cells | Array, str]:
    import pyarrow as pa

    column = plain_column(column)
    kind = column.type
    if is_bytes(kind):
        return Cells(column, holds_addresses=False), f"images in bytes in the column {name!r}"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return Cells(column, holds_addresses=False), f"images as {kind} in the column {name!r}"
    if is_text(kind):
        return Cells(column, holds_addresses=True), f"addresses of images in the column {name!r}"
    if is_list(kind) or isinstance(kind, pa.BaseExtensionType):
        array = _array(column, name, path, options.shape)
        shape = "x".join(map(str, array.shape[1:]))
        return array, f"arrays of {array.dtype}, {shape}, in the column {name!r}"
    raise DataError(
        f"Expected the column {name!r} of {path} to hold images in bytes, arrays, or addresses "
        f"but got {kind}. Name another with --image."
    )


def _array(
    column: pa.ChunkedArray, name: str, path: Path, shape_option: tuple[int, ...] | None
) -> Array:
    """All arrays of a column, (n, ...): lists of one length, nested or flat, or Arrow's tensors."""
    import pyarrow as pa

    chunk = column.combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):  # of several chunks, in some versions
        chunk = pa.concat_arrays(chunk.chunks)
    count = len(chunk)
    shape: tuple[int, ...] = ()
    if isinstance(chunk.type, pa.BaseExtensionType):
        shape = tuple(getattr(chunk.type, "shape", ()))
        chunk = chunk.storage
    lengths: tuple[int, ...] = ()
    while is_list(chunk.type):
        inner = chunk.flatten()
        if chunk.null_count or (len(chunk) and len(inner) % len(chunk)):
            raise _uneven(name, path)
        length = len(inner) // len(chunk) if len(chunk) else 0
        if pa.types.is_fixed_size_list(chunk.type):
            length = chunk.type.list_size
        elif len(chunk) and not bool((np.diff(np.asarray(chunk.offsets)) == length).all()):
            raise _uneven(name, path)
        lengths, chunk = (*lengths, length), inner
    values = chunk.to_numpy(zero_copy_only=False)
    if chunk.null_count or values.dtype.kind not in "uif":
        raise DataError(
            f"Expected numbers in the arrays of {name!r} in {path} but got {chunk.type}"
            f"{' with empty cells' if chunk.null_count else ''}."
        )
    shape = shape or (shape_option if shape_option and len(lengths) == 1 else lengths)
    if count and int(np.prod(shape)) * count != len(values):
        raise DataError(
            f"Expected arrays of {len(values) // count} numbers in {name!r} of {path} to have the "
            f"shape {'x'.join(map(str, shape))} but that is {int(np.prod(shape))}. Correct --shape."
        )
    if values.dtype.kind in "ui" and values.dtype != np.uint8:
        raise DataError(
            f"Expected uint8 or floats in the arrays of {name!r} in {path} but got {values.dtype}. "
            "Write them in the type they have in memory."
        )
    array: Array = values.reshape(count, *shape)
    return array


def _uneven(name: str, path: Path) -> DataError:
    return DataError(
        f"Expected arrays of one shape in the column {name!r} of {path} but some differ or are "
        "missing. Write them again."
    )
