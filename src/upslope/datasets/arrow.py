"""Arrow columns in their plain types, so that readers decide by a handful of kinds.

Writers of Parquet and Arrow files choose among many types for the same values: large and view
types (polars), dictionaries (pandas categories), run ends, unsigned integers, decimals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from upslope.datasets.parquet_footer import column_sizes
from upslope.reading import check_regular, check_room, reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa


_FIXED_ROWS, _ROWS = 1 << 16, 1 << 10
"""Rows read at once: of columns whose cells have one size, and of others, where a few bytes of a
file may stand for a large cell."""


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of a Parquet file, or these columns of it.

    What the file says of its size is checked first; what its cells take is counted while they are
    read, since repeated cells are stored once.

    Raises:
        DataError: the file is damaged, or takes more memory than a file may.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reporting_damage(f"a Parquet file in {path}", "Get it again."):
        check_regular(path)
        with pq.ParquetFile(path) as file:
            check_room(_stated_bytes(path, columns), path)
            has_fixed_width = all(_cell_bytes(field.type) for field in file.schema_arrow)
            batches: list[pa.RecordBatch] = []
            size = 0
            for batch in file.iter_batches(
                _FIXED_ROWS if has_fixed_width else _ROWS, columns=columns
            ):
                batch.validate(full=True)
                size += sum(map(_plain_bytes, batch.columns))
                check_room(size, path)
                batches.append(batch)
            schema = file.schema_arrow
            if columns is not None:
                schema = pa.schema([schema.field(name) for name in columns], schema.metadata)
            return pa.Table.from_batches(batches, schema) if batches else schema.empty_table()


def check_ipc(path: Path) -> None:
    """Read an Arrow file, or a stream in a file, through once, so that others may map it.

    Cells of a damaged file that is mapped unseen point outside of it, which ends the process.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa

    with reporting_damage(f"an Arrow file in {path}", "Save it again."):
        check_regular(path)
        with pa.memory_map(str(path)) as file:
            try:
                reader = pa.ipc.open_stream(file)
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(file)
                for i in range(reader.num_record_batches):
                    reader.get_batch(i).validate(full=True)
            else:
                for batch in reader:
                    batch.validate(full=True)


def _stated_bytes(path: Path, columns: Sequence[str] | None) -> int:
    """Return the bytes that columns take by the file's own account."""
    return sum(
        max(size, values // 8, 0)
        for name, size, values in column_sizes(path)
        if columns is None or name in columns
    )


def _plain_bytes(column: pa.Array) -> int:
    """Return the bytes that cells take without dictionaries, in which a large one is stored
    once.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_struct(kind):
        return sum(map(_plain_bytes, column.flatten()))
    if is_list(kind) and not pa.types.is_fixed_size_list(kind) and hasattr(column, "offsets"):
        return int(column.offsets.nbytes) + _plain_bytes(column.flatten())
    if not pa.types.is_dictionary(kind):
        return int(column.nbytes)
    if width := _cell_bytes(kind.value_type):
        return int(width * len(column))
    words = column.dictionary
    if not (is_text(words.type) or is_bytes(words.type)):
        return int(column.nbytes)
    return int(pc.sum(pc.binary_length(words).take(column.indices)).as_py() or 0)


def _cell_bytes(kind: pa.DataType) -> int:
    """Return how many bytes a cell takes; 0 where cells differ."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 0


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the same cells without dictionary, run-end and view encodings."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    while pa.types.is_dictionary(kind) or str(kind).startswith("run_end_encoded"):
        if pa.types.is_dictionary(kind):
            # Not by a cast, which extension types such as pandas' intervals lack.
            chunks = [chunk.dictionary_decode() for chunk in column.chunks]
            column = pa.chunked_array(chunks, type=kind.value_type)
        else:
            chunks = [pc.run_end_decode(chunk) for chunk in column.chunks]
            column = pa.chunked_array(chunks, type=kind.value_type)
        kind = column.type
    # By name: the types are younger than the oldest library that is supported.
    views = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
    return column.cast(views[str(kind)]) if str(kind) in views else column


def unused_categories(column: pa.ChunkedArray) -> list[Any]:
    """Return the values that a column of categories states and that no cell of it has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return []
    values = {value: None for chunk in column.chunks for value in chunk.dictionary.to_pylist()}
    cells = {*pc.unique(plain_column(column)).to_pylist(), None}
    return [value for value in values if value not in cells]


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
