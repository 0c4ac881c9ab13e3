"""Tables that a program holds: of pandas, polars or Arrow, or a mapping of columns.

    splits = Splits.from_table(frame, target="price", kind="numbers")
    splits = Splits.from_table(frame, text="review", target="stars")

They become an Arrow table, and are then read as files of tables are (`table`, `text`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.datasets import table as tables
from upslope.datasets import text as texts
from upslope.datasets.argument_names import as_arguments, options_as_arguments
from upslope.datasets.rows import rows_of
from upslope.datasets.splits import Splits
from upslope.datasets.table import Missing
from upslope.datasets.targets import Kind
from upslope.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

INDEX_ID = "id"
TABLE = Path("the table")  # what messages call it


def from_table(
    frame: Any,
    test: Any = None,
    *,
    target: str | Sequence[str] | None = None,
    kind: Kind = "class",
    classes: Sequence[str] | None = None,
    text: str | None = None,
    tokenizer: str = texts.WORDS,
    length: int = 128,
    columns: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    missing: Missing = "error",
    missing_labels: Sequence[str] | None = None,
    id: str | None = None,
    test_share: float = 0.2,
) -> Splits:
    """Make the splits of a table; see `Splits.from_table`."""
    with options_as_arguments():
        arrow_tables = [as_arrow(frame, "the table")]
        if test is not None:
            arrow_tables.append(as_arrow(test, "the test table"))
        notes = tuple(note for _, table_notes in arrow_tables for note in table_notes)
        rows = rows_of([one for one, _ in arrow_tables], TABLE, id, notes=notes)
        target_names = _as_list(target)
        if text is None:
            splits = tables.from_rows(
                rows, target_names, classes, kind, _as_list(columns),
                _as_list(categorical) or "", missing, missing_labels, test_share,
            )  # fmt: skip
        elif kind != "class" or columns is not None or categorical:
            raise ConfigError(
                "Expected texts with a class each where `text` names a column but got `kind`, "
                "`columns` or `categorical`, which are for columns of numbers and categories."
            )
        else:
            splits = texts.from_rows(
                rows, tokenizer, text, target_names, classes, missing_labels, length, test_share
            )
    table_notes = tuple(as_arguments(note) for note in splits.notes)
    return Splits(splits.pool, splits.test, splits.validation, table_notes)


def _as_list(names: str | Sequence[str] | None) -> str | list[str] | None:
    return names if names is None or isinstance(names, str) else list(names)


def as_arrow(frame: Any, what: str) -> tuple[pa.Table, tuple[str, ...]]:
    """Return (the table of Arrow, notes).

    An index of pandas that is not just 0, 1, 2 becomes the column `id`, where there is none.

    Raises:
        ConfigError: no table.
        DataError: columns that Arrow cannot hold, or two of one name.
    """
    import pyarrow as pa

    notes: tuple[str, ...] = ()
    try:
        if isinstance(frame, pa.RecordBatch):
            table = pa.Table.from_batches([frame])
        elif isinstance(frame, pa.Table):
            table = frame
        elif hasattr(frame, "iloc") and hasattr(frame, "columns"):
            table, notes = _of_pandas(frame)
        elif hasattr(frame, "__arrow_c_stream__"):
            table = _with_plain_text(pa.table(frame))
        elif isinstance(frame, Mapping) and not hasattr(frame, "map"):
            table = pa.table(dict(frame))
        else:
            raise ConfigError(
                f"Expected {what} to be a DataFrame of pandas or polars, a table of Arrow, or a "
                f"mapping of columns but got {type(frame).__name__}."
            )
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"Expected {what} to have columns of one type each but: {error}. Convert the column, "
            "as with astype(str)."
        ) from error
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise DataError(
            f"Expected the columns of {what} to have names of their own but {twice[0]!r} is there "
            "twice. Rename one."
        )
    return table, notes


def _with_plain_text(table: pa.Table) -> pa.Table:
    """Return the table with the texts of polars, categories too, as plain ones: Arrow computes
    little on others.
    """
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        of_words = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_string_view(of_words):
            texts = [pa.array(chunk.to_pylist(), pa.string()) for chunk in table[place].chunks]
            table = table.set_column(place, field.name, pa.chunked_array(texts, pa.string()))
    return table


def _of_pandas(frame: Any) -> tuple[pa.Table, tuple[str, ...]]:
    import pyarrow as pa

    if wrong := [name for name in frame.columns if not isinstance(name, str)]:
        raise DataError(
            f"Expected the columns of the table to be named by text but got {wrong[0]!r}. Name "
            "them: frame.columns = [...]."
        )
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    index = frame.index
    if list(index) == list(range(len(frame))):
        return table, ()
    if INDEX_ID in table.column_names or getattr(index, "nlevels", 1) > 1:
        return table, ("The index of the table is left out; reset_index() makes columns of it.",)
    ids = pa.array([str(value) for value in index])
    return table.append_column(INDEX_ID, ids), ("The index of the table is taken as ids.",)
