"""SHA-256 of the content of a table, so that a bit that changed in a file of scores is noticed.

Parquet files have checksums of their pages at most; what stands in their footers has none. The
digest is of values, in their order, whatever row groups they lie in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from upslope.files import json_digest


class TableDigest:
    """The digest of a table of texts and numbers, which is given part by part."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        """Take the next rows into the digest. table: of text and of numbers, none missing."""
        for name, column in zip(table.column_names, table.columns, strict=True):
            for chunk in column.chunks:
                for suffix, values in _parts(chunk):
                    key = f"{name} {suffix}"
                    self._columns.setdefault(key, hashlib.sha256()).update(values)

    def result(self, facts: Mapping[str, Any] | None = None) -> str:
        """Return the digest of all rows and of facts beside them, in hexadecimal.

        facts: plain data.
        """
        columns = {key: sha256.hexdigest() for key, sha256 in self._columns.items()}
        return json_digest([columns, dict(facts or {})])


def digest_of(tables: Iterable[pa.Table], facts: Mapping[str, Any] | None = None) -> str:
    """Return the digest of tables that follow each other, and of facts beside them."""
    digest = TableDigest()
    for table in tables:
        digest.add(table)
    return digest.result(facts)


def _parts(chunk: pa.Array) -> Iterable[tuple[str, Any]]:
    """Yield (name, bytes) of what an array is made of; the bytes of two arrays in a row are those
    of the joint one."""
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    if chunk.null_count:
        yield "nulls", np.asarray(chunk.is_null()).tobytes()
        return
    if not (pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)):
        yield str(chunk.type), np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).data
        return
    texts = chunk.cast(pa.large_string())
    if not len(texts):
        return
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)
    yield "lengths", np.diff(ends).data
    if data is not None:
        yield "text", memoryview(data)[ends[0] : ends[-1]]
