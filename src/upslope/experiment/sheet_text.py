"""The text of a sheet of answers, in UTF-8 or as spreadsheets save it without saying how.

Excel's plain "CSV" is in the encoding of the machine, which the file does not name. The sheet's own
words tell it: the ids that were asked and the names of the classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from upslope.datasets.decoding import UndecodableError, read_text
from upslope.errors import DataError

ENCODINGS = (
    "cp1252", "mac_roman", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "cp850",
    "gb18030", "cp932", "cp949", "big5",
)  # fmt: skip
"""Those that spreadsheets save in by default, in the West, in Europe's East and in East Asia."""

Rows = Sequence[tuple[int, Mapping[str, str]]]


def read_rows(
    path: Path,
    parse: Callable[[str], Rows],
    is_known: Callable[[Mapping[str, str]], bool] | None,
    remedy: str,
) -> Rows:
    """Return the rows of a sheet; in another encoding than UTF-8 only where one alone can be meant.

    An encoding can be meant where each id and label that is not plain ASCII is a known one in it.
    Where all that can be meant give the same ids and labels, these are taken, with a warning.

    path: the sheet. parse: text -> (number, cells by column) of each row. is_known: whether the id
    and the label of a row can be taken; None gives the rows of all that can be meant. remedy: the
    end of the error.

    Raises:
        DataError: an encoding that cannot be told; whatever `parse` raises.
    """
    try:
        return parse(read_text(path))
    except UndecodableError as error:
        data = path.read_bytes()
        meanings = {} if b"\0" in data else _meanings(data, parse, is_known or (lambda _: True))
        if is_known is None:
            return [row for _, rows in meanings.values() for row in rows]
        if len(meanings) == 1:
            encoding, rows = next(iter(meanings.values()))
            warnings.warn(
                f"{path} is not in UTF-8. It was read as {encoding}, in which its ids and labels "
                'are known ones. Saved as "CSV UTF-8" it needs no guess.',
                stacklevel=2,
            )
            return rows
        raise DataError(
            f"Expected {path} in UTF-8, or in UTF-16 with a byte order mark, but {error.reason}"
            + (", and its ids and labels do not tell the encoding" if b"\0" not in data else "")
            + '. Save it again as "CSV UTF-8": in another encoding, letters may be other ones.'
            + f" {remedy}".rstrip()
        ) from error


def _meanings(
    data: bytes, parse: Callable[[str], Rows], is_known: Callable[[Mapping[str, str]], bool]
) -> dict[tuple[tuple[str, str], ...], tuple[str, Rows]]:
    """Return ids and labels -> (the first encoding that gives them, the rows), of all that can be
    meant."""
    meanings: dict[tuple[tuple[str, str], ...], tuple[str, Rows]] = {}
    for encoding in ENCODINGS:
        try:
            rows = parse(data.decode(encoding))
        except (UnicodeDecodeError, DataError):
            continue
        pairs = tuple((row.get("id", ""), row.get("label", "")) for _, row in rows)
        if all(is_known(row) for _, row in rows):
            meanings.setdefault(pairs, (encoding, rows))
    return meanings


def decode_mixed_up(text: str) -> str | None:
    """Return text in UTF-8 that was read as cp1252 or Mac Roman and saved so, as "Ã¼" for "ü".

    text: a cell. Returns None where it is no such text.
    """
    if text.isascii():
        return None
    for encoding in ("cp1252", "mac_roman"):
        try:
            # Bytes that cp1252 leaves open are read as the control characters of their numbers.
            data = b"".join(
                bytes([ord(c)]) if "\x80" <= c <= "\x9f" else c.encode(encoding) for c in text
            )
            return data.decode("utf-8")
        except UnicodeError:
            continue
    return None
