"""Tell how many bits an AVIF picture has for a colour: Pillow gives 8 of them, and does not say so.

An AVIF file consists of boxes, each of a length, a kind and a content, which may be boxes too. The
boxes av1C, within meta, iprp and ipco, describe the coded pictures: ISO/IEC 23008-12, and AV1 Codec
ISO Media File Format Binding, section 2.3. `images` calls it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HIGH_DEPTH, _TWELVE = 0x40, 0x20  # bits of the third byte of av1C


def coded_bits(data: bytes) -> int:
    """Return the bits of a colour in the coded pictures of a file, 8 where it says nothing.

    data: the file, or its beginning with the box meta.
    """
    properties = _content(_content(_content(data, b"meta")[4:], b"iprp"), b"ipco")
    flags = [content[2] for kind, content in _boxes(properties) if kind == b"av1C" and content[2:]]
    return max((_bits_of(byte) for byte in flags), default=8)


def _bits_of(flags: int) -> int:
    if not flags & _HIGH_DEPTH:
        return 8
    return 12 if flags & _TWELVE else 10


def _content(data: bytes, box_kind: bytes) -> bytes:
    """The content of the first box of a kind; nothing where there is none."""
    return next((content for kind, content in _boxes(data) if kind == box_kind), b"")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, content) of each box, as far as the data have them."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):  # the length stands behind, in 64 bits
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        end = at + size if size else len(data)
        if end < at + head:
            return
        yield kind, data[at + head : end]
        at = end
