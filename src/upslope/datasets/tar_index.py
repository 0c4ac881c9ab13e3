"""Index of a tar archive: where the content of each member lies, read without unpacking any.

`webdataset` calls it once per shard. Archives are of strangers: links, devices, and names that lead
out of the archive are refused, and so is a file that ends before the archive does.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from upslope.errors import DataError, RunError
from upslope.reading import check_regular, check_room, reporting_damage

_BLOCK = 512  # bytes; a block of zeros ends an archive
_CHUNK = 1 << 20
_ADVICE = "Get it again, or pack it again as plain files in an uncompressed tar."
_LONGEST = 4096  # characters of a name, the longest path of Linux

Stamp = tuple[int, int]
"""Bytes and time of the last change of a file: what tells its content from another's."""


class Member(NamedTuple):
    """A plain file in an archive: its name, and the bytes of the archive that are its content."""

    name: str
    offset: int
    size: int


def read_members(path: Path) -> Iterator[Member]:
    """Yield the plain files of a tar archive in order; folders in it are passed over.

    Names have no leading "./". Headers alone are read, and none is kept.

    Raises:
        DataError: no uncompressed tar, one that is damaged or cut off, a member that is no plain
            file, or a name that is absolute, has a part "..", or is not UTF-8.
    """
    with reporting_damage(f"an uncompressed tar archive in {path}", _ADVICE):
        check_regular(path)
        length = path.stat().st_size
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end = 0
            while (header := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # which would hold every header
                if archive.offset <= end or header.size < 0:
                    raise ValueError(f"the header of {header.name!r} states no possible size")
                end = archive.offset
                _check_member(header, path)
                if header.isdir():
                    continue
                if header.offset_data + header.size > length:
                    raise ValueError(f"it is cut off within {header.name!r}")
                name = PurePosixPath(header.name).as_posix()
                yield Member(name, header.offset_data, header.size)
            _check_end(file, archive.offset)


def stamp_of(path: Path) -> Stamp:
    """Return what tells the content of an archive from another's.

    Raises:
        DataError: there is no such file.
    """
    with reporting_damage(f"an uncompressed tar archive in {path}", _ADVICE):
        return _stamp(path.stat())


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns


def read_content(path: Path, member: Member, stamp: Stamp) -> bytes:
    """Return the content of a member.

    stamp: of the archive when it was indexed. In one that was written again since, other members
    lie where the index says.

    Raises:
        DataError: the archive cannot be read, or the content is larger than a file may be.
        RunError: the archive is not as it was when it was indexed; no sample of it is damaged, so
            that none may be left out for it.
    """
    check_room(member.size, f"{member.name} in {path}")
    with reporting_damage(f"{member.name} in the tar archive {path}", _ADVICE):
        with path.open("rb") as file:
            if _stamp(os.fstat(file.fileno())) != stamp:
                raise RunError(
                    f"Expected the tar archive {path} to stay as it was when it was opened but it "
                    "has been written again since: its samples lie elsewhere now. Start again "
                    "once nothing writes to it."
                )
            file.seek(member.offset)
            content = file.read(member.size)
        if len(content) < member.size:
            raise ValueError("the archive is shorter than its index says")
    return content


def _check_member(header: tarfile.TarInfo, path: Path) -> None:
    """Refuse a member that is no plain file or folder, or whose name leads elsewhere."""
    name = header.name
    reason = ""
    if header.issym() or header.islnk():
        reason = f"it is a link to {header.linkname!r}"
    elif header.issparse() or not (header.isreg() or header.isdir()):
        reason = "it is a device, a pipe or a sparse file"
    elif name.startswith("/") or PureWindowsPath(name).drive or "\\" in name:
        reason = "its name is absolute, or one of Windows"
    elif ".." in PurePosixPath(name).parts:
        reason = 'its name has a part ".."'
    elif len(name) > _LONGEST:
        reason = f"its name has {len(name):,} characters"
    else:
        try:
            name.encode()
        except UnicodeEncodeError:
            reason = "its name is not UTF-8"
    if reason:
        raise DataError(
            f"Expected plain files with names that stay within the archive in {path} but got "
            f"{name[:200]!r}: {reason}. {_ADVICE}"
        )


def _check_end(file: IO[bytes], offset: int) -> None:
    """Raise ValueError unless a block of zeros, and nothing but zeros, follows the last member.

    Python's reader takes a damaged header, and the end of the file, for the end of the archive.
    """
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise ValueError("it is cut off: the block of zeros at its end is missing")
    while block:
        if any(block):
            raise ValueError(
                f"what follows byte {offset:,} is no header of a member: damage, or a second "
                "archive behind the first"
            )
        block = file.read(_CHUNK)
