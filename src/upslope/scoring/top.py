"""The highest scores of a pool, in one pass over the file of its scores."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from upslope.errors import ConfigError, SelectionError
from upslope.reading import reporting_damage

_ROWS = 1 << 16  # rows looked at together


REMEDY = "Run `upslope score` again: it writes it anew from the files of the shards."


def ids_among(path: Path, ids: Collection[str]) -> set[str]:
    """Return those of some ids that are in a file of scores, in one pass over it.

    path: a Parquet file with the column id. ids: to look for.

    Raises:
        DataError: the file is damaged.
    """
    id_array = pa.array(sorted(ids), pa.string())
    there: set[str] = set()
    with reporting_damage(f"a Parquet file of scores in {path}", REMEDY), \
            pq.ParquetFile(path) as file:  # fmt: skip
        for batch in file.iter_batches(_ROWS, columns=["id"]):
            column = batch.column("id").cast(pa.string())
            there.update(column.filter(pc.is_in(column, value_set=id_array)).to_pylist())
    return there


def top_scores(
    path: Path, column: str, budget: int, without: Collection[str] = ()
) -> list[tuple[str, float]]:
    """Return the ids of highest score with their scores, best first; ties go to the smaller id.

    Memory is that of `budget` rows and of one part of the file, whatever the pool has.

    path: a Parquet file with ids and scores, as `score_pool` and `score_to_file` write it. column:
    the score. budget: how many. without: ids that are not chosen.

    Raises:
        ConfigError: no such column.
        SelectionError: fewer rows than the budget, or a score that is NaN.
    """
    hidden = pa.array(sorted(without), pa.string())
    best: pa.Table | None = None
    rows = 0
    with reporting_damage(f"a Parquet file of scores in {path}", REMEDY), \
            pq.ParquetFile(path) as file:  # fmt: skip
        names = file.schema_arrow.names
        if column not in names or "id" not in names:
            raise ConfigError(
                f"Expected the score {column!r} in {path} but it has {', '.join(names)}."
            )
        for batch in file.iter_batches(_ROWS, columns=["id", column]):
            part = pa.table(batch).rename_columns(["id", "score"])
            if len(hidden):
                part = part.filter(pc.invert(pc.is_in(part["id"], value_set=hidden)))
            if pc.any(pc.is_nan(part["score"])).as_py() or part["score"].null_count:
                bad = part.filter(pc.is_nan(part["score"]))["id"].to_pylist()[:1]
                raise SelectionError(f"Expected finite scores in {path} but {bad} has none.")
            rows += len(part)
            if best is not None and len(best) == budget:
                part = part.filter(pc.greater_equal(part["score"], best["score"][budget - 1]))
            best = part if best is None else pa.concat_tables([best, part])
            order = pc.sort_indices(best, [("score", "descending"), ("id", "ascending")])
            best = best.take(order[:budget])
    if best is None or not 1 <= budget <= rows:
        raise SelectionError(
            f"Expected a budget between 1 and the {rows} candidates left but got {budget}."
        )
    return list(zip(best["id"].to_pylist(), best["score"].to_pylist(), strict=True))
