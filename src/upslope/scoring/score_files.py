"""Files of scores by shards and of all together, each with a digest of its content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from upslope.datasets.arrow import read_parquet
from upslope.errors import DataError
from upslope.files import from_json, to_json
from upslope.reading import reporting_damage
from upslope.scoring.table_digest import TableDigest, digest_of
from upslope.scoring.top import REMEDY

_METADATA, _DIGEST = b"upslope", "sha256"


def with_facts(scores: pa.Table, facts: Mapping[str, Any]) -> pa.Table:
    """Return the scores of a shard with facts and a digest of all in their metadata.

    scores: id and a column for each score. facts: plain data, as `read_scores` returns it.
    """
    record = {**facts, _DIGEST: digest_of([scores], facts)}
    return scores.replace_schema_metadata({_METADATA: to_json(record)})


def write_joined(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write the table of all shards, part by part, with its digest behind.

    path: a new file. tables: of each shard, all with the same columns.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    digest = TableDigest()
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            digest.add(table)
        if writer:
            writer.add_key_value_metadata({_METADATA: to_json({_DIGEST: digest.result()})})
    finally:
        if writer:
            writer.close()


def read_scores(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return the scores of a shard, once compared with their digest, and what they say of it: its
    name, size, tag, and what was skipped. Files of earlier versions have no digest.

    Raises:
        DataError: the file is damaged.
    """
    try:
        table = read_parquet(path)
        facts = from_json((table.schema.metadata or {})[_METADATA])
        digest = facts.pop(_DIGEST, None)
        # With others, a digest has lost its name: no earlier version wrote any.
        sound = facts.keys() == {"shard", "size", "tag", "skipped"}
        if sound and digest in (None, digest_of([table], facts)):
            return table, dict(facts)
    except (DataError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError):
        pass  # told below
    raise DataError(
        f"Expected the scores of a shard in {path} but the file is damaged. Remove it, and run the "
        "same command again: it is computed anew."
    )


def check_joined(path: Path) -> None:
    """Compare the table of all shards with its digest; one of an earlier version has none.

    Raises:
        DataError: the file is damaged.
    """
    with (
        reporting_damage(f"a Parquet file of scores in {path}", REMEDY),
        pq.ParquetFile(path) as file,
    ):
        metadata = dict(file.metadata.metadata or {})
        text = metadata.pop(_METADATA, None)
        if strangers := metadata.keys() - {b"ARROW:schema", b"pandas"}:
            raise ValueError(f"its metadata have the names {sorted(strangers)}")
        parts = (pa.Table.from_batches([batch]) for batch in file.iter_batches())
        if text is not None and from_json(text)[_DIGEST] != digest_of(parts):
            raise ValueError("its content is not what was written")
