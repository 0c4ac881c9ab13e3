"""STAR files, as RELION writes them: read, and written back with nothing lost.

(S. Hall, The STAR File, 1991; the part of it that RELION uses: data blocks that hold one loop, or
single pairs of name and value.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.errors import DataError
from upslope.files import write_atomically

_TOKEN = re.compile(r"'([^']*)'|\"([^\"]*)\"|(\S+)")


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
        """The values of a column that is there."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


def read_star(path: Path) -> list[Block]:
    """The blocks of a STAR file, in order.

    Raises:
        DataError: the file cannot be read as text, is no STAR file, or a row of a loop has more
            or fewer values than there are columns.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected a STAR file in {path} but reading it failed: {error}."
        ) from error
    blocks: list[Block] = []
    name: str | None = None
    columns: list[str] = []
    rows: list[tuple[str, ...]] = []
    loop = False

    def close() -> None:
        if name is not None and columns:
            blocks.append(Block(name, tuple(columns), tuple(rows), loop))
        columns.clear()
        rows.clear()

    for number, line in enumerate(lines, start=1):
        words = _words(line)
        if not words:
            continue
        where = f"line {number} of {path}"
        if words[0].startswith("data_"):
            close()
            name, loop = words[0].removeprefix("data_"), False
        elif name is None or words[0].startswith((";", "save_")):
            raise DataError(
                f"Expected a STAR file as RELION writes it, which begins with data_, but got "
                f"{line.strip()[:60]!r}, {where}."
            )
        elif words[0] == "loop_":
            close()
            loop = True
        elif words[0].startswith("_") and not (loop and rows):
            columns.append(words[0][1:])
            if not loop:
                if len(words) != 2:
                    raise DataError(f"Expected a name and a value but got {line!r}, {where}.")
                rows[:] = [((*(rows[0] if rows else ()), words[1]))]
        else:
            if len(words) != len(columns) or not loop:
                raise DataError(
                    f"Expected {len(columns)} values, one a column of data_{name}, but got "
                    f"{len(words)}, {where}."
                )
            rows.append(tuple(words))
    close()
    if not blocks:
        raise DataError(f"Expected a table in {path} but it holds none.")
    return blocks


def write_star(path: Path, blocks: Sequence[Block]) -> None:
    """Write the blocks; atomically."""
    out: list[str] = []
    for block in blocks:
        out += [f"data_{block.name}", ""]
        if block.loop:
            out.append("loop_")
            out += [f"_{name} #{i}" for i, name in enumerate(block.columns, start=1)]
            out += ["  ".join(_quoted(value) for value in row) for row in block.rows]
        else:
            pairs = zip(block.columns, block.rows[0], strict=True)
            out += [f"_{name}  {_quoted(value)}" for name, value in pairs]
        out += ["", ""]
    text = "\n".join(out)
    write_atomically(path, lambda to: _write(to, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _words(line: str) -> list[str]:
    words = []
    for match in _TOKEN.finditer(line):
        single, double, plain = match.groups()
        if plain is not None and plain.startswith("#"):
            break
        words.append(plain if plain is not None else (single if single is not None else double))
    return words


def _quoted(value: str) -> str:
    if value and not re.search(r"\s", value) and value[0] not in "#'\"_":
        return value
    return f'"{value}"' if '"' not in value else f"'{value}'"
