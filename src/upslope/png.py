"""Check what Pillow does not of a PNG file: checksums, the end, missing rows, what is behind them.

Pillow decodes pixels whose checksum is wrong, and leaves rows black that the file does not have.
`images` calls it for every PNG whose pixels are read.
"""

from __future__ import annotations

import struct
import zlib
from typing import IO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"  # keywords of texts
_PART = 1 << 20  # bytes read at once
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers per pixel, by the colour type."""
_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2),
           (0, 1, 1, 2))  # fmt: skip
"""Of Adam7, the interlacing of PNG: the first column and the step between columns, and of rows."""


def check_chunks(file: IO[bytes]) -> None:
    """Compare the sum of every chunk with its content, up to the end that each file must have.

    file: open for reading; what stands behind the end is not looked at.

    Raises:
        ValueError: a sum is wrong, or the file ends before its end chunk.
    """
    file.seek(len(_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("it is cut short: it has no end chunk (IEND)")
        left, kind = struct.unpack(">I4s", head)
        total = zlib.crc32(kind)
        while left:
            part = file.read(min(left, _PART))
            if not part:
                raise ValueError(f"it is cut short in its chunk {kind!r}")
            total, left = zlib.crc32(part, total), left - len(part)
        if file.read(4) != struct.pack(">I", total):
            raise ValueError(f"the checksum of its chunk {kind!r} is wrong")


def check_rows(file: IO[bytes]) -> None:
    """Unpack the pixels of a PNG, keeping none, and compare their bytes with what its size needs.

    file: open for reading, with sound chunks.

    Raises:
        ValueError: rows are missing, or the pixels cannot be unpacked.
    """
    file.seek(len(_SIGNATURE))
    byte_count, count, unpack = 0, 0, zlib.decompressobj()
    kind = b""
    while kind != b"IEND":
        left, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IHDR":
            byte_count = _needed_bytes(file.read(left))
        elif kind != b"IDAT":
            file.seek(left, 1)
        while kind == b"IDAT" and left:
            part = file.read(min(left, _PART))
            left -= len(part)
            while part and not unpack.eof and count < byte_count:
                count += len(unpack.decompress(part, _PART))
                part = unpack.unconsumed_tail
        file.seek(4, 1)
    if count < byte_count:
        raise ValueError(f"its pixels are {count:,} bytes, where its size needs {byte_count:,}")


def has_late_orientation(file: IO[bytes]) -> bool:
    """Say whether a chunk behind the pixels may hold an orientation: EXIF data, or XMP.

    file: open for reading; its place is kept. What is cut short holds none.
    """
    place = file.tell()
    file.seek(len(_SIGNATURE))
    behind = late = False
    while not late and len(head := file.read(8)) == 8:
        left, kind = struct.unpack(">I4s", head)
        text = file.read(min(left, len(_RAW_EXIF))) if kind in (b"iTXt", b"tEXt", b"zTXt") else b""
        late = behind and (kind == b"eXIf" or text.startswith((_XMP, _RAW_EXIF)))
        behind = behind or kind == b"IDAT"
        file.seek(left - len(text) + 4, 1)
    file.seek(place)
    return late


def _needed_bytes(header: bytes) -> int:
    """Return the bytes of all rows with their filters, by the content of IHDR."""
    width, height, depth, colour, _, _, interlace_method = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(colour, 1)
    if not interlace_method:
        return int(height * (1 + (width * bits + 7) // 8))
    total = 0
    for column, columns, row, rows in _PASSES:
        across, down = -(-(width - column) // columns), -(-(height - row) // rows)
        if across > 0 and down > 0:
            total += down * (1 + (across * bits + 7) // 8)
    return total
