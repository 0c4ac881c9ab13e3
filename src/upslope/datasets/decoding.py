"""Decode the bytes of a text file: CSV, JSON Lines, manifests, class tables.

Files are UTF-8 unless a byte order mark or the option `encoding` says otherwise. No encoding is
guessed: bytes that are not UTF-8 are text in any one-byte encoding, and only their owner knows in
which.
"""

from __future__ import annotations

import codecs
import warnings
from pathlib import Path
from typing import Annotated

from pydantic import Field

from upslope.errors import ConfigError, DataError
from upslope.reading import cannot_open

EncodingOption = Annotated[
    str | None,
    Field(
        description="encoding of the text files, such as cp1252, latin-1 or utf-16; "
        "what the byte order mark says, or utf-8, if not given"
    ),
]


class UndecodableError(DataError):
    """Bytes that are no text in the encoding that is expected. reason: which, as a clause."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_AROUND = 20
"""Bytes shown on either side of the one that cannot be decoded."""


def read_text(path: Path, encoding: str | None = None) -> str:
    """Return the text of a file without its byte order mark; line ends stay as they are.

    encoding: the option of that name.

    Raises:
        ConfigError: an encoding that does not exist.
        DataError: the file cannot be opened, or holds bytes that are no text in its encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_open("a text file", path, error) from error
    return decode_text(data, path, encoding)


def decode_text(data: bytes, source: object, encoding: str | None = None) -> str:
    """Return the text of bytes, without a byte order mark.

    source: the file that messages name. encoding: the option of that name.

    Raises:
        ConfigError: an encoding that does not exist.
        DataError: bytes that are no text in the encoding given, marked or usual; text that holds
            NUL characters; a byte order mark that contradicts the encoding given.
    """
    mark, mark_name = next(((m, name) for m, name in _MARKS if data.startswith(m)), (b"", None))
    codec = _lookup(encoding)
    if mark_name and codec and not _agree(mark_name, codec):
        raise DataError(
            f"Expected {source} to be text in {encoding}, as `data.encoding` says, but its byte "
            f"order mark {mark.hex(' ')} is that of {mark_name}. Leave `data.encoding` out."
        )
    name = mark_name or codec or "utf-8"
    try:
        text = data[len(mark) :].decode(name)
    except UnicodeDecodeError as error:
        raise _undecodable(data, len(mark) + error.start, source, name, encoding) from error
    if codec and not mark_name and not text.isascii() and _is_utf_8(data, codec):
        warnings.warn(
            f"{source} is read as {encoding}, as was asked, but is text in UTF-8 as well, which "
            "texts in other encodings hardly ever are. Leave the encoding out where letters come "
            "out wrong.",
            stacklevel=3,
        )
    if "\0" in text:
        at = text.index("\0")
        reason = f"character {at + 1:,} is NUL"
        raise UndecodableError(
            f"Expected text in {source} but {reason}. "
            + (
                "Text in UTF-16 without a byte order mark looks so: set `data.encoding` to "
                "utf-16-le or utf-16-be; otherwise the file is binary or damaged."
                if name == "utf-8"
                else f"The file is damaged, or not in {name}."
            ),
            reason,
        )
    return text


def read_utf8(path: Path) -> str:
    """Return the text of a file of a reader that has no option `encoding`.

    Raises:
        DataError: as `read_text`, without advice on that option.
    """
    try:
        return read_text(path)
    except UndecodableError as error:
        raise _not_utf8(path, error.reason) from error


def decode_utf8(data: bytes, source: object) -> str:
    """Return the text of bytes for a reader that has no option `encoding`.

    source: the file that messages name.

    Raises:
        DataError: as `decode_text`, without advice on that option.
    """
    try:
        return decode_text(data, source)
    except UndecodableError as error:
        raise _not_utf8(source, error.reason) from error


def _not_utf8(source: object, reason: str) -> UndecodableError:
    message = f"Expected {source} to be text in UTF-8 but {reason}. Write it again in UTF-8."
    return UndecodableError(message, reason)


def _lookup(encoding: str | None) -> str | None:
    """Return the name of an encoding as Python writes it.

    Raises:
        ConfigError: there is none of that name, or it is not one of text.
    """
    if encoding is None:
        return None
    try:
        "".encode(encoding)  # refuses codecs that are not of text
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"Expected `data.encoding` to be an encoding that Python knows, such as utf-8, cp1252, "
            f"latin-1 or utf-16, but got {encoding!r}."
        ) from error


def _is_utf_8(data: bytes, codec: str) -> bool:
    """Tell whether bytes that are read in another encoding are valid UTF-8."""
    if codec.startswith("utf"):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _agree(mark_name: str, codec: str) -> bool:
    """Return whether the encoding given may begin with the byte order mark of `mark_name`."""
    return codec in (
        mark_name,
        mark_name.rpartition("-")[0],
        "utf-8-sig" if mark_name == "utf-8" else mark_name,
    )


def _undecodable(
    data: bytes, at: int, source: object, name: str, encoding: str | None
) -> UndecodableError:
    line = data.count(b"\n", 0, at) + 1
    before = data[max(0, at - _AROUND) : at].rpartition(b"\n")[2]
    after = data[at : at + _AROUND].partition(b"\n")[0].rstrip(b"\r")
    where = f"byte 0x{data[at]:02x} at offset {at:,}, line {line:,}"
    reason = f"{where}, is not"
    if encoding is not None or name != "utf-8":
        return UndecodableError(
            f"Expected {source} to be text in {encoding or name} but {reason}. Set "
            "`data.encoding` to the one that the file was written in.",
            reason,
        )
    if b"\0" in data[:4096]:
        return UndecodableError(
            f"Expected {source} to be text in UTF-8 but {reason}, and there are NUL bytes: "
            "it is binary, or UTF-16 without a byte order mark. In the latter case set "
            "`data.encoding` to utf-16-le or utf-16-be.",
            reason,
        )
    guess = (before + after).decode("cp1252", errors="replace")
    return UndecodableError(
        f"Expected {source} to be text in UTF-8 but {reason}. Set `data.encoding` to the "
        "one that the file was written in: in cp1252, that of Excel on Windows, it reads "
        f"{guess!r}. Or save the file again as UTF-8.",
        reason,
    )
