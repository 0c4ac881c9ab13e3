"""Read what the footer of a Parquet file says of its columns' sizes, by Python alone.

Arrow has the same numbers, but ends the whole process on some damaged footers where it is asked for
them. The footer is in Thrift's compact protocol; field numbers are those of `parquet.thrift`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_TAIL = 8  # bytes after the footer: its length and the name of the format
_FOOTER_LIMIT = 1 << 28
"""Bytes of a footer at most: that of ten thousand columns and row groups has some 2^24."""
_DEPTH = 32
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = (
    0, 1, 2, 3, 7, 8, 9, 10, 11, 12
)  # fmt: skip
_INTEGERS = (4, 5, 6)
_ROW_GROUPS, _COLUMNS, _COLUMN_METADATA = 4, 1, 3
_PATH, _VALUES, _UNCOMPRESSED_SIZE = 3, 5, 6


def column_sizes(path: Path) -> list[tuple[str, int, int]]:
    """Return (name of the top column, bytes when unpacked, values) of each column chunk.

    Raises:
        ValueError: the footer is damaged.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or not 0 < length <= min(size - _TAIL, _FOOTER_LIMIT):
            raise ValueError("it has no plain footer")
        file.seek(size - _TAIL - length)
        footer = _Compact(file.read(length)).struct()
    sizes = []
    try:
        for group in footer[_ROW_GROUPS]:
            for column in group[_COLUMNS]:
                chunk = column[_COLUMN_METADATA]
                name = chunk[_PATH][0].decode()
                sizes.append((name, int(chunk[_UNCOMPRESSED_SIZE]), int(chunk[_VALUES])))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("its footer does not describe its columns") from error
    return sizes


class _Compact:
    """Values in Thrift's compact protocol: structures as field number -> value."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a structure.

        Raises:
            ValueError: it ends too early, or holds what the protocol has not.
        """
        if depth > _DEPTH:
            raise ValueError("its footer is nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != _STOP:
            number = number + (head >> 4) if head >> 4 else self._read_signed()
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._read_signed()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _BINARY:
            return self._bytes(self._read_unsigned())
        if kind in (_BYTE, _TRUE, _FALSE):  # a flag outside of a structure is a byte
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _MAP:
            return self._map(depth)
        raise ValueError(f"its footer holds a value of kind {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._read_unsigned()
        self._check(count)
        return [self._value(head & 15, depth + 1) for _ in range(count)]

    def _map(self, depth: int) -> dict[Any, Any]:
        count = self._read_unsigned()
        self._check(count)
        kinds = self._byte() if count else 0
        pairs = [
            (self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1))
            for _ in range(count)
        ]
        return dict(enumerate(pairs))

    def _check(self, count: int) -> None:
        """Refuse a count that the bytes left cannot hold: every value takes one at least."""
        if count > len(self._data) - self._at:
            raise ValueError("its footer is cut short")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        self._check(count)
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def _read_unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("its footer holds a number of more than 64 bits")

    def _read_signed(self) -> int:
        value = self._read_unsigned()
        return (value >> 1) ^ -(value & 1)
