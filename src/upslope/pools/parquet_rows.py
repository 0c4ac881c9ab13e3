"""The rows of a Parquet shard: ids, and a column of encoded images, of arrays, or of addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.datasets.arrays import Array
from upslope.datasets.arrow import is_bytes, is_list, is_text, plain_column, read_parquet, texts_of
from upslope.datasets.image_form import MissingImageError
from upslope.errors import DataError
from upslope.pools.shard import ReadOptions
from upslope.reading import check_regular, reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "pixels", "features", "path", "url")
"""Usual names of the column of inputs, the first that is there is taken."""
IDS = ("id", "key", "__key__", "uid")
NO_ROWS = "no rows"
"""The words for the inputs of a shard that has none."""
NO_IMAGES = "empty cells alone"
"""The words for the inputs of a shard whose rows have none: its column has no type."""
_ADVICE = "Get it again, or leave it out."


@dataclass(frozen=True, eq=False)
class Cells:
    """position -> the bytes of an encoded image, or its address.

    column: the cells. holds_addresses: they are text. name: of the column. shard: its name.
    """

    column: pa.ChunkedArray
    holds_addresses: bool
    name: str
    shard: str

    def __call__(self, position: int) -> Any:
        """Return the bytes, or the address as text, which is empty where the cell is.

        Raises:
            MissingImageError: there are no bytes in the cell, perhaps a path in their place.
        """
        value: Any = self.column[position].as_py()
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if not value and not self.holds_addresses:
            where = f" of the column {self.name!r} of {self.shard}"
            if path:
                raise MissingImageError(
                    f"Expected an image in row {position} (from 0){where} but the cell has the "
                    f"path {path!r} alone. Write the bytes beside it, or the paths into a column "
                    "of text."
                )
            raise empty_cell(position, where)
        return value or ""


def empty_cell(row: int, where: str) -> MissingImageError:
    """Return the error that a row has no image. row: from 0. where: the column and the shard."""
    return MissingImageError(
        f"Expected an image in row {row} (from 0){where} but the cell is empty. Repair or remove "
        "the row, or leave such rows out with --skip-corrupt."
    )


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
    inputs, words = _inputs(table.column(image), image, path, name, options)
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
    column: pa.ChunkedArray, name: str, path: Path, shard: str, options: ReadOptions
) -> tuple[Cells | Array, str]:
    import pyarrow as pa

    if not len(column):
        return np.empty(0, dtype=np.uint8), NO_ROWS
    column = plain_column(column)
    kind = column.type
    if pa.types.is_null(kind):
        return Cells(column, False, name, shard), NO_IMAGES
    if is_bytes(kind):
        return Cells(column, False, name, shard), f"images in bytes in the column {name!r}"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return Cells(column, False, name, shard), f"images as {kind} in the column {name!r}"
    if is_text(kind):
        return Cells(column, True, name, shard), f"addresses of images in the column {name!r}"
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
    """Return all arrays of a column, (n, ...): lists of one length, nested or flat, or Arrow's
    tensors.
    """
    import pyarrow as pa

    chunk = column.combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):  # of several chunks, in some versions
        chunk = pa.concat_arrays(chunk.chunks)
    count = len(chunk)
    shape: tuple[int, ...] = ()
    if isinstance(chunk.type, pa.BaseExtensionType):
        shape = tuple(getattr(chunk.type, "shape", ()))
        order = list(getattr(chunk.type, "permutation", None) or range(len(shape)))
        if order != sorted(order):
            raise DataError(
                f"Expected the tensors in the column {name!r} of {path} to be stored in the order "
                f"of their dimensions but got the permutation {order}, in which programs differ. "
                "Write contiguous arrays."
            )
        chunk = chunk.storage
    lengths: tuple[int, ...] = ()
    while is_list(chunk.type):
        inner = chunk.flatten()
        lists_per_row = max(1, len(chunk) // max(1, count))  # lists of this level in a row
        if chunk.null_count:
            row = int(np.flatnonzero(np.asarray(chunk.is_null()))[0]) // lists_per_row
            raise _uneven(name, path, f"row {row} (from 0) has an empty cell")
        length = len(inner) // len(chunk) if len(chunk) else 0
        if pa.types.is_fixed_size_list(chunk.type):
            length = chunk.type.list_size
        elif len(chunk):
            lengths_here = np.diff(np.asarray(chunk.offsets))
            length = int(lengths_here[0])
            if len(other := np.flatnonzero(lengths_here != length)):
                row, got = int(other[0]) // lists_per_row, int(lengths_here[other[0]])
                raise _uneven(name, path, f"row {row} has {got} numbers where row 0 has {length}")
        lengths, chunk = (*lengths, length), inner
    values = chunk.to_numpy(zero_copy_only=False)
    if chunk.null_count:
        row = int(np.flatnonzero(np.asarray(chunk.is_null()))[0]) // (len(chunk) // count)
        raise _uneven(name, path, f"row {row} (from 0) has an empty number")
    if values.dtype.kind not in "uif":
        raise DataError(
            f"Expected numbers in the arrays of {name!r} in {path} but got {chunk.type}."
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


def _uneven(name: str, path: Path, got: str) -> DataError:
    return DataError(
        f"Expected arrays of one shape in the column {name!r} of {path} but {got}. Write the "
        "shard again."
    )
