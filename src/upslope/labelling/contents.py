"""Tell whether a sample is still what people answered: an image may be replaced under its name.

What is noted with an answer is the size and the time of a file, with a digest of parts of it, which
are read again only where the time is another. Of a row of a table it is a digest of its cells.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from upslope.labelling.samples import FolderImages, Samples, TableRows

_PART = 1 << 14  # bytes at the beginning, in the middle and at the end of a file


def content_of(samples: Samples, position: int) -> str:
    """Return a text that changes with the content of a sample; "" where it cannot be read."""
    if isinstance(samples, TableRows):
        return _digest(repr(sorted(samples.content(position).items())).encode())
    if not isinstance(samples, FolderImages):
        return ""  # a data set that ships with a library
    path = samples.root / samples.ids[position]
    try:
        return f"{_stamp(path)}/{_digest_file(path)}"
    except OSError:
        return ""


def replaced_samples(samples: Samples, contents: Mapping[str, str]) -> list[str]:
    """Return the ids of samples whose content is another than it was, in their order.

    contents: id -> what `content_of` returned before.
    """
    return [
        id_
        for position, id_ in enumerate(samples.ids)
        if (before := contents.get(id_)) and not _is_same(samples, position, before)
    ]


def _is_same(samples: Samples, position: int, before: str) -> bool:
    """Whether a sample has the content that it had, or cannot be read, which is told elsewhere."""
    if isinstance(samples, FolderImages):
        try:
            stamp = _stamp(samples.root / samples.ids[position])
        except OSError:
            return True
        if before.startswith(f"{stamp}/"):
            return True
    now = content_of(samples, position)
    return not now or now.rpartition("/")[2] == before.rpartition("/")[2]


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}/{status.st_mtime_ns}"


def _digest_file(path: Path) -> str:
    """A digest of the size of a file and of three parts of it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        content = str(size).encode()
        for start in (0, size // 2, max(0, size - _PART)):
            file.seek(start)
            content += file.read(_PART)
    return _digest(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
