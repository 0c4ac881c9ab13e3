"""STAR files, as RELION writes them: read, and written back with nothing lost.

(S. Hall, The STAR File, 1991; the part of it that RELION uses: data blocks that hold loops, a line
for each row, or pairs of name and value.)

The package's own reader, since those that exist lose particles. A row whose first value begins with
data_ is a parse error to gemmi's CIF reader (0.7.5) and ends the table in starfile (0.5.13); gemmi
takes "_a.mrc 2" for a name and a value, refuses names outside ASCII, and shifts values between rows
of unequal length; starfile fills short rows with NaN and drops the first of two blocks of one name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from upslope.errors import DataError
from upslope.files import write_text
from upslope.reading import cannot_open

_TOKEN = re.compile(
    r"'((?:[^']|'(?=\S))*)'(?=\s|$)|\"((?:[^\"]|\"(?=\S))*)\"(?=\s|$)|(\S+)", re.ASCII
)
"""A quoted value ends at a quote before white space, so that `it's` may stand in single quotes."""
_RESERVED_WORDS = re.compile(r"[#'\"_$\[\];]|(data|save|loop|stop|global)_", re.IGNORECASE)
"""Beginnings of a value that other readers of STAR files take for something else: quoted."""


class _Line(NamedTuple):
    """The words of a line; `bare` is the first of them unless it is in quotes, else "".

    gap: whether an empty line, or one with a comment alone, stands before it.
    """

    number: int
    words: tuple[str, ...]
    bare: str
    gap: bool


@dataclass(frozen=True)
class Block:
    """data_<name>: a table of text. `loop` is False for pairs of name and value, one row then.

    columns: without the leading underscore, as `rlnCoordinateX`.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    loop: bool = True

    def column(self, name: str) -> list[str]:
        """Return the values of a column that is there."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


def utf8(data: bytes, source: object) -> str:
    """Return the text of bytes in UTF-8, without a byte order mark; `source` is their file.

    Raises:
        DataError: the bytes are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected {source} to be text in UTF-8 but got: {error}. Save it as UTF-8."
        ) from error


def read_star(path: Path, decode: Callable[[bytes, Path], str] = utf8) -> list[Block]:
    """Read the blocks of a STAR file, in order. decode: brings its bytes to text.

    A line of a loop is a row where it has one value per column, whatever its first value begins
    with: programs write names such as data_1.mrc without the quotes that the format asks for.

    Raises:
        DataError: the file cannot be read as text, is no STAR file, a row of a loop has more or
            fewer values than there are columns, a block is empty while others are not, or a line
            can be read in two ways.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_open("a STAR file", path, error) from error
    lines = _lines(decode(data, path))
    blocks: list[Block] = []
    empty: list[str] = []
    at = 0
    while at < len(lines):
        where = f"line {lines[at].number} of {path}"
        if not lines[at].bare.startswith("data_"):
            raise DataError(
                f"Expected a STAR file as RELION writes it, which begins with data_, but got "
                f"{' '.join(lines[at].words)[:60]!r}, {where}."
            )
        name = lines[at].bare.removeprefix("data_")
        start, at = at, at + 1
        before = len(blocks)
        while at < len(lines) and not lines[at].bare.startswith("data_"):
            read = _loop if lines[at].bare == "loop_" and len(lines[at].words) == 1 else _pairs
            block, at = read(name, lines, at, path)
            blocks.append(block)
        if len(blocks) == before:
            empty.append(f"data_{name}, line {lines[start].number}")
    if not blocks:
        raise DataError(f"Expected a table in {path} but it holds none.")
    if empty:
        raise DataError(
            f"Expected a table in each block of {path} but there is none in {empty[0]}. If it is a "
            "row that was cut short, complete it; else remove the line."
        )
    return blocks


def _lines(text: str) -> list[_Line]:
    lines: list[_Line] = []
    gap = False
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        words, has_quotes = _words(line)
        if words:
            lines.append(_Line(number, tuple(words), "" if has_quotes else words[0], gap))
        gap = not words
    return lines


def _pairs(name: str, lines: list[_Line], at: int, path: Path) -> tuple[Block, int]:
    """Return the pairs of name and value that begin at line `at`, and the line after them."""
    columns: list[str] = []
    row: list[str] = []
    while at < len(lines) and not lines[at].bare.startswith("data_"):
        line = lines[at]
        if line.bare == "loop_" and len(line.words) == 1:
            break
        if not line.bare.startswith("_") or len(line.words) != 2:
            raise DataError(
                f"Expected a name and a value, or loop_ alone, in data_{name} but got "
                f"{' '.join(line.words)[:60]!r}, line {line.number} of {path}."
            )
        columns.append(line.bare[1:])
        row.append(line.words[1])
        at += 1
    return _block(name, columns, [tuple(row)], False, path), at


def _loop(name: str, lines: list[_Line], at: int, path: Path) -> tuple[Block, int]:
    """Return the loop that begins at line `at` with loop_, and the line after it."""
    columns: list[str] = []
    at += 1
    while at < len(lines) and lines[at].bare.startswith("_") and len(lines[at].words) == 1:
        columns.append(lines[at].bare[1:])
        at += 1
    rows: list[tuple[str, ...]] = []
    while at < len(lines) and not _ends_loop(lines, at, len(columns)):
        line = lines[at]
        where = f"line {line.number} of {path}"
        if line.bare.startswith("_") and line.gap and len(columns) == 2 and rows:
            raise DataError(
                f"Expected quotes around a value that begins with _ but got "
                f"{' '.join(line.words)!r} after an empty line, {where}: it may be a row of "
                "the loop, or a name and its value. Put the value in quotes, or data_ before it."
            )
        if line.bare.startswith(";"):
            raise DataError(
                f"Expected a row on one line but got {line.bare[:60]!r}, {where}: a text that "
                "begins with a semicolon may go over several. Put the value in quotes."
            )
        if len(line.words) != len(columns):
            raise DataError(
                f"Expected {len(columns)} values, one per column of data_{name}, but got "
                f"{len(line.words)}, {where}."
            )
        rows.append(line.words)
        at += 1
    return _block(name, columns, rows, True, path), at


def _ends_loop(lines: list[_Line], at: int, columns: int) -> bool:
    """Return whether line `at` begins something else than a row of a loop of so many columns.

    A single word data_... or loop_ does where rows have several values. Where they have one, it
    does if names follow: a row is not followed by names.
    """
    line = lines[at]
    if len(line.words) != 1 or not (line.bare.startswith("data_") or line.bare == "loop_"):
        return False
    if columns != 1:
        return True
    following = lines[at + 1] if at + 1 < len(lines) else None
    if following is None:
        return False
    if line.bare == "loop_":
        return following.bare.startswith("_")
    return following.words == ("loop_",) or (
        following.bare.startswith("_") and len(following.words) == 2
    )


def _block(
    name: str, columns: list[str], rows: list[tuple[str, ...]], loop: bool, path: Path
) -> Block:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(
            f"Expected each name once in data_{name} of {path} but _{twice[0]} is there "
            f"{columns.count(twice[0])} times. Remove or rename all but one."
        )
    return Block(name, tuple(columns), tuple(rows), loop)


def write_star(path: Path, blocks: Sequence[Block]) -> None:
    """Write the blocks; atomically."""
    out: list[str] = []
    for block in blocks:
        out += [f"data_{block.name}", ""]
        if block.loop:
            out.append("loop_")
            out += [f"_{name} #{i}" for i, name in enumerate(block.columns, start=1)]
            out += ["  ".join(_quote(value) for value in row) for row in block.rows]
        else:
            pairs = zip(block.columns, block.rows[0], strict=True)
            out += [f"_{name}  {_quote(value)}" for name, value in pairs]
        out += ["", ""]
    text = "\n".join(out)
    write_text(path, text)


def _words(line: str) -> tuple[list[str], bool]:
    """Return the values of a line, and whether the first of them is in quotes."""
    words: list[str] = []
    has_quotes = False
    for match in _TOKEN.finditer(line):
        plain = match.group(3)
        if plain is not None and plain.startswith("#"):
            break
        has_quotes = has_quotes or (not words and plain is None)
        words.append(next(part for part in match.groups() if part is not None))
    return words, has_quotes


def _quote(value: str) -> str:
    if value and not re.search(r"\s", value) and not _RESERVED_WORDS.match(value):
        return value
    for quote in "\"'":
        if not re.search(rf"{quote}\s|[\r\n]", value + "."):
            return f"{quote}{value}{quote}"
    raise DataError(
        f"Expected a value that one line of a STAR file can hold but got {value!r}. Rename it."
    )
