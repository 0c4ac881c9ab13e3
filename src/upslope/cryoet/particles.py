"""Particles of tomograms: a RELION STAR file or a CSV table says where they lie.

Either each particle is a volume of its own, `rlnImageName` (a file, or 000012@stack.mrc for one of
a stack, counted from 1), or it is a place in a tomogram: `rlnTomoName` or `rlnMicrographName` with
`rlnCoordinateX`, Y, Z in voxels, less `rlnOriginXAngst`, Y, Z in angstrom or, as before RELION 3.1,
`rlnOriginX`, Y, Z in voxels, where there are such columns. A CSV table has the columns image, or
tomogram, x, y, z, and perhaps label.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upslope.counts import format_count
from upslope.cryoet.star import Block, read_star, utf8, write_star
from upslope.errors import DataError
from upslope.reading import cannot_open, is_file

_CSV = {
    "image": "rlnImageName",
    "tomogram": "rlnTomoName",
    "x": "rlnCoordinateX",
    "y": "rlnCoordinateY",
    "z": "rlnCoordinateZ",
}
_TOMOGRAM = ("rlnTomoName", "rlnMicrographName")
_PLACE = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
_OFFSET = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
_VOXEL_OFFSET = ("rlnOriginX", "rlnOriginY", "rlnOriginZ")
_NAMES = ("rlnTomoParticleName", "rlnImageName")
UNKNOWN = ("", "None", "none", "?", "<NA>")
SCORE, RANK = "upslopeScore", "upslopeRank"


@dataclass(frozen=True)
class Particle:
    """id: rlnTomoParticleName or rlnImageName, or else tomo/a.mrc@10.5,20,30, so that a part of a
    table names its particles as the whole does.

    file: of the volume or the tomogram. index: of a stack, from 0; None for a whole file.
    centre: (x, y, z) in voxels of the tomogram, origins in voxels taken off; None for a volume of
    its own. offset: (x, y, z) in angstrom still to be taken off it. label: "" where nobody has
    said."""

    id: str
    file: Path
    index: int | None
    centre: tuple[float, float, float] | None
    offset: tuple[float, float, float]
    label: str

    def corner(self, box: int, voxel: float) -> tuple[list[float], NDArray[np.int64]]:
        """Return its place (x, y, z) in voxels, and the first voxel (z, y, x) of a box around it.

        voxel: edge in angstrom. The voxel nearest to the place is number box // 2 of the box.
        """
        assert self.centre is not None
        place = [c - o / voxel for c, o in zip(self.centre, self.offset, strict=True)]
        nearest = [math.floor(c + 0.5) for c in reversed(place)]
        return place, np.array(nearest, dtype=np.int64) - box // 2


@dataclass(frozen=True)
class ParticleTable:
    """The particles of a file, in its order, and the blocks they came from."""

    path: Path
    blocks: tuple[Block, ...]
    at: int
    """Which block holds the particles."""
    particles: tuple[Particle, ...]
    labels: tuple[str, ...] = ()
    """As the file has them, one for each particle; empty where no column holds any."""
    notes: tuple[str, ...] = ()
    """Sentences on how the table was taken where it could have been meant otherwise."""


def _is_unknown(label: str) -> bool:
    return label in UNKNOWN


def read_particles(
    path: Path,
    label: str | None = None,
    *,
    is_missing: Callable[[str], bool] = _is_unknown,
    decode: Callable[[bytes, Path], str] = utf8,
) -> ParticleTable:
    """Return the particles of a .star or .csv file; files are sought beside it and above it.

    label: the column that holds the classes; `label` in a CSV table and `rlnClassNumber` in a STAR
    file, if there is one. is_missing: whether a label says that nobody knows. decode: brings the
    bytes of the file to text.

    Raises:
        DataError: columns are missing or contradict each other, coordinates are no numbers, two
            particles have one name, two tables hold particles, or the file of one is missing.
    """
    blocks = (
        (_from_csv(path, decode),)
        if path.suffix.lower() == ".csv"
        else tuple(read_star(path, decode))
    )
    tables = [i for i, block in enumerate(blocks) if _layout(block)]
    if len(tables) > 1:
        places = " and ".join(f"{len(blocks[i].rows)} in data_{blocks[i].name}" for i in tables)
        raise DataError(
            f"Expected one table of particles in {path} but got {places}. Keep one, or join them."
        )
    if not tables:
        blocks_there = "; ".join(f"data_{b.name}: {', '.join(b.columns)}" for b in blocks)
        raise DataError(
            f"Expected a table with rlnImageName, or with rlnTomoName (or rlnMicrographName) and "
            f"{', '.join(_PLACE)}, in {path} but got {blocks_there}."
        )
    at = tables[0]
    block = blocks[at]
    _one_kind_of_origin(block, path)
    if label is not None and label not in block.columns:
        raise DataError(
            f"Expected the column {label!r}, which is to hold the classes, in {path} but got "
            f"{', '.join(block.columns)}."
        )
    if label is None:
        label = next((n for n in ("label", "rlnClassNumber") if n in block.columns), None)
    labels = block.column(label) if label else [""] * len(block.rows)
    row_of_name: dict[str, int] = {}
    folders: dict[str, Path] = {}
    particles = []
    for row, (values, said) in enumerate(zip(block.rows, labels, strict=True)):
        record = dict(zip(block.columns, values, strict=True))
        particle = _particle(record, row, path, folders, "" if is_missing(said) else said)
        if particle.id in row_of_name:
            raise DataError(
                f"Expected each particle once in {path} but {particle.id!r} is there in rows "
                f"{row_of_name[particle.id] + 1} and {row + 1}."
            )
        row_of_name[particle.id] = row
        particles.append(particle)
    notes = (*_notes(block, path), *_copy_notes(particles, path))
    return ParticleTable(path, blocks, at, tuple(particles), tuple(labels) if label else (), notes)


def write_selection(
    table: ParticleTable,
    path: Path,
    ids: Sequence[str],
    scores: Mapping[str, float] | None = None,
) -> None:
    """Write a STAR file of the particles chosen, in the order of choice, with all their columns.

    Two columns are added: `upslopeRank`, from 1, and, with `scores`, `upslopeScore`. Other blocks,
    such as optics, are written as they were.

    Raises:
        DataError: an id that is no particle of the table, or has no score.
        RunError: the file cannot be written.
    """
    row_of = {particle.id: i for i, particle in enumerate(table.particles)}
    absent = [i for i in ids if i not in row_of or (scores is not None and i not in scores)]
    if absent:
        raise DataError(
            f"Expected particles of {table.path}{' with scores' if scores is not None else ''} but "
            f"got {absent[0]!r} ({len(absent)} of {len(ids)})."
        )
    block = table.blocks[table.at]
    column_places = [i for i, name in enumerate(block.columns) if name not in (SCORE, RANK)]
    rows = []
    for rank, id_ in enumerate(ids, start=1):
        values = [block.rows[row_of[id_]][i] for i in column_places]
        new_values = [str(rank)] if scores is None else [str(rank), f"{scores[id_]:.9g}"]
        rows.append((*values, *new_values))
    columns = (
        [block.columns[i] for i in column_places] + [RANK] + ([SCORE] if scores is not None else [])
    )
    blocks = list(table.blocks)
    blocks[table.at] = Block(block.name, tuple(columns), tuple(rows))
    write_star(path, blocks)


def _layout(block: Block) -> bool:
    places = set(_PLACE) <= set(block.columns) and any(n in block.columns for n in _TOMOGRAM)
    return block.loop and ("rlnImageName" in block.columns or places)


def _one_kind_of_origin(block: Block, path: Path) -> None:
    voxels, angstrom = (
        [name for name in names if name in block.columns] for names in (_VOXEL_OFFSET, _OFFSET)
    )
    if voxels and angstrom:
        raise DataError(
            f"Expected origins in voxels or in angstrom in {path} but got both, {voxels[0]} and "
            f"{angstrom[0]}. Remove the columns that are out of date."
        )


def _notes(block: Block, path: Path) -> tuple[str, ...]:
    """Return what the origins of a table come to; nothing where it has none, or only zeros."""
    names = [n for n in (*_VOXEL_OFFSET, *_OFFSET) if n in block.columns]
    shift_count = sum(
        any(_not_zero(v) for v in row) for row in zip(*map(block.column, names), strict=True)
    )
    if not shift_count:
        return ()
    count = f"{shift_count} of {len(block.rows)}"
    of = f"{count} particles of {path.name} have origins ({names[0]}, ...)"
    if "rlnImageName" in block.columns:
        return (f"{of}: they are not applied, as each particle is a volume of its own.",)
    unit = "voxels of the tomogram" if names[0] in _VOXEL_OFFSET else "angstrom"
    return (f"{of}: they are taken off the coordinates, as {unit}.",)


def _copy_notes(particles: Sequence[Particle], path: Path) -> tuple[str, ...]:
    """Return a sentence on particles that are there under two names; they may be in pool and test
    set.
    """
    first: dict[object, str] = {}
    copies = []
    for one in particles:
        before = first.setdefault((one.file, one.index, one.centre, one.offset), one.id)
        if before != one.id:
            copies.append((one.id, before))
    if not copies:
        return ()
    return (
        f"{format_count(len(copies), 'particle')} of {path.name} "
        f"{'is' if len(copies) == 1 else 'are'} an earlier one under another name, first "
        f"{copies[0][0]!r} as {copies[0][1]!r}: remove one of each.",
    )


def _not_zero(text: str) -> bool:
    try:
        return float(text) != 0
    except ValueError:
        return True


def _particle(
    record: Mapping[str, str], row: int, path: Path, folders: dict[str, Path], label: str
) -> Particle:
    where = f"row {row + 1} of {path}"
    if "rlnImageName" in record:
        stack, _, file = record["rlnImageName"].rpartition("@")
        if stack and not re.fullmatch("[0-9]{1,9}", stack):
            raise DataError(f"Expected a number before @ but got {stack[:60]!r}, {where}.")
        index, centre, offset = (int(stack) - 1 if stack else None), None, (0.0, 0.0, 0.0)
        name = record["rlnImageName"]
    else:
        file = next(record[n] for n in _TOMOGRAM if n in record)
        index = None
        place = _numbers([record[n] for n in _PLACE], where)
        shift = _numbers([record.get(n, "0") for n in _VOXEL_OFFSET], where)
        centre = (place[0] - shift[0], place[1] - shift[1], place[2] - shift[2])
        offset = _numbers([record.get(n, "0") for n in _OFFSET], where)
        name = f"{file}@{','.join(record[n] for n in _PLACE)}"
    id_ = next((record[n] for n in _NAMES if n in record), name)
    if file not in folders:
        homes = path.resolve().parents  # RELION's paths begin at its project's folder
        home = next((home for home in homes if is_file(home / file)), None)
        if home is None:
            raise DataError(
                f"Expected the file {file!r}, {where}, beside {path.name} or in a folder above it "
                "but it is missing."
            )
        folders[file] = home / file
    return Particle(id_, folders[file], index, centre, offset, label)


def _numbers(texts: Sequence[str], where: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(text) for text in texts)
    except ValueError as error:
        raise DataError(f"Expected coordinates but got {list(texts)}, {where}.") from error
    if not all(math.isfinite(v) for v in (x, y, z)):
        raise DataError(f"Expected finite coordinates but got {list(texts)}, {where}.")
    return x, y, z


def _from_csv(path: Path, decode: Callable[[bytes, Path], str]) -> Block:
    try:
        text = io.StringIO(decode(path.read_bytes(), path), newline="")
        lines = [row for row in csv.reader(text, skipinitialspace=True, strict=True) if row]
    except OSError as error:
        raise cannot_open("a table", path, error) from error
    except csv.Error as error:
        raise DataError(
            f"Expected a table in {path} but reading it failed: {error}. Save it as CSV again, "
            "with commas between the cells."
        ) from error
    if not lines:
        raise DataError(f"Expected a table in {path} but it is empty.")
    columns = [_CSV.get(name.strip(), name.strip()) for name in lines[0]]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(
            f"Expected each column once in {path} but {twice[0]!r} is there "
            f"{columns.count(twice[0])} times. Remove or rename all but one."
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise DataError(
                f"Expected {len(columns)} values, one per column, but got {len(line)}, row "
                f"{number} of {path}."
            )
    rows = tuple(tuple(value.strip() for value in line) for line in lines[1:])
    return Block("particles", tuple(columns), rows)
