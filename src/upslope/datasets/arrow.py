"""Arrow columns in their plain types, so that readers decide by a handful of kinds.

Writers of Parquet and Arrow files choose among many types for the same values: large and view
types (polars), dictionaries (pandas categories), run ends, unsigned integers, decimals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the same cells without dictionary, run-end and view encodings."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    while pa.types.is_dictionary(kind) or str(kind).startswith("run_end_encoded"):
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
        else:
            chunks = [pc.run_end_decode(chunk) for chunk in column.chunks]
            column = pa.chunked_array(chunks, type=kind.value_type)
        kind = column.type
    # By name: the types are younger than the oldest library that is supported.
    views = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
    return column.cast(views[str(kind)]) if str(kind) in views else column


def is_text(kind: pa.DataType) -> bool:
    """Return whether cells of a plain type are text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether cells of a type are bytes, of any encoding of them."""
    import pyarrow as pa

    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or str(kind) == "binary_view"
    )


def is_list(kind: pa.DataType) -> bool:
    """Return whether cells of a type are lists, of any encoding of them."""
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or str(kind).startswith(("list_view", "large_list_view"))
    )


def is_number(kind: pa.DataType) -> bool:
    """Return whether cells of a plain type are integers, floats or decimals, not truth values."""
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def numbers_of(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return (n,) float64 of a column for which `is_number` holds, NaN for empty cells."""
    import pyarrow as pa

    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def texts_of(column: pa.ChunkedArray, what: str) -> list[str | None]:
    """Return the cells of a plain column as text: whole numbers in full, bytes as UTF-8.

    what: "ids in the column ..." for the message.

    Raises:
        DataError: cells that have no one spelling: floats that are not whole or too large to be
            exact, lists, structs, dates, bytes that are not UTF-8.
    """
    import pyarrow as pa

    from upslope.errors import DataError

    kind = column.type
    if is_text(kind) or pa.types.is_null(kind):
        cells: list[str | None] = column.to_pylist()
        return cells
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return [None if cell is None else str(cell) for cell in column.to_pylist()]
    if is_bytes(kind):
        try:
            return [None if cell is None else cell.decode() for cell in column.to_pylist()]
        except UnicodeDecodeError as error:
            raise DataError(
                f"Expected {what} to be text but got bytes that are not UTF-8: {error.object!r}."
            ) from error
    if is_number(kind):
        return [_whole(cell, what, kind) for cell in column.to_pylist()]
    raise DataError(f"Expected {what} to be text or whole numbers but got cells of type {kind}.")


def _whole(cell: Any, what: str, kind: pa.DataType) -> str | None:
    from upslope.errors import DataError

    if cell is None or cell != cell:  # NaN, which pandas writes for a missing integer
        return None
    if not np.isfinite(float(cell)) or cell != int(cell):
        raise DataError(f"Expected {what} to be text or whole numbers but got {kind}: {cell}.")
    if isinstance(cell, float) and abs(cell) > 2**53:
        raise DataError(
            f"Expected {what} to be exact but got {kind}: {int(cell)}, and whole numbers above "
            "2^53 are rounded in that type. Write them as text or as int64."
        )
    return str(int(cell))
