"""Sentences on the MRC files of a table of particles: odd headers, pixel sizes, the border."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from upslope.counts import format_count
from upslope.cryoet.mrc import read_header
from upslope.cryoet.mrc_header import MrcHeader
from upslope.cryoet.particles import ParticleTable
from upslope.errors import DataError

_PIXEL = (
    "rlnTomoTiltSeriesPixelSize",
    "rlnMicrographPixelSize",
    "rlnImagePixelSize",
    "rlnPixelSize",
)
"""Columns that may state, in angstrom, the pixels in which coordinates are counted."""
_GROUP = "rlnOpticsGroup"
_RATIO = 1.01  # of two sizes that count as different


def volume_notes(table: ParticleTable, box: int, voxel: float | None) -> tuple[str, ...]:
    """Return sentences on the files that particles lie in; headers alone are read.

    box: voxels along each edge that are cut out. voxel: as for `mrc.read_header`. A file that
    cannot be read is left to the reading of its particles.
    """
    headers: dict[Path, MrcHeader] = {}
    for file in sorted({particle.file for particle in table.particles}):
        try:
            headers[file] = read_header(file, voxel)
        except DataError:
            continue
    return (
        *_oddities(table, headers),
        *_starts(table, headers),
        *_other_pixels(table, headers),
        *_borders(table, headers, box),
    )


def _oddities(table: ParticleTable, headers: dict[Path, MrcHeader]) -> tuple[str, ...]:
    odd: dict[str, list[Path]] = {}
    for file, header in headers.items():
        for oddity in header.oddities:
            odd.setdefault(oddity, []).append(file)
    return tuple(
        f"{files[0].name} {oddity} ({len(files)} of {len(headers)} files of {table.path.name})."
        for oddity, files in odd.items()
    )


def _starts(table: ParticleTable, headers: dict[Path, MrcHeader]) -> tuple[str, ...]:
    """Return whether tomograms say that their first voxel lies elsewhere than at 0."""
    tomograms = {particle.file for particle in table.particles if particle.centre is not None}
    with_shift = [f for f in sorted(tomograms & headers.keys()) if any(headers[f].start)]
    if not with_shift:
        return ()
    x, y, z = headers[with_shift[0]].start
    return (
        f"{with_shift[0].name} begins at x, y, z = {x:g}, {y:g}, {z:g} angstrom by its header, "
        "NXSTART "
        f"or ORIGIN ({len(with_shift)} of {len(tomograms)} tomograms). Coordinates are counted "
        "from "
        "the "
        "first voxel of the file: take the start off them if they are counted from elsewhere.",
    )


def _other_pixels(table: ParticleTable, headers: dict[Path, MrcHeader]) -> tuple[str, ...]:
    """Return whether the table states pixels of other sizes than the voxels of the tomograms."""
    sizes = _stated_pixels(table)
    others: dict[tuple[str, float], list[Path]] = {}
    for particle, (column, pixel) in zip(table.particles, sizes, strict=True):
        if particle.centre is None or particle.file not in headers or not pixel > 0:
            continue
        if not 1 / _RATIO < headers[particle.file].voxel / pixel < _RATIO:
            others.setdefault((column, pixel), []).append(particle.file)
    tomograms = {particle.file for particle in table.particles if particle.centre is not None}
    return tuple(
        f"{table.path.name} states pixels of {pixel:g} angstrom ({column}) for "
        f"{format_count(len(files), 'particle')}, and {sorted(files)[0].name} has voxels of "
        f"{headers[sorted(files)[0]].voxel:g} ({len(set(files))} of {len(tomograms)} tomograms). "
        "Coordinates are taken as voxels of the file: scale them if they are counted in those "
        "pixels."
        for (column, pixel), files in sorted(others.items())
    )


def _stated_pixels(table: ParticleTable) -> list[tuple[str, float]]:
    """(the column that says so, angstrom) of each particle: of its own row, of its optics group, or
    else of any table with one size; nan where nothing says so."""
    table_block = table.blocks[table.at]
    count = len(table_block.rows)
    for column in _PIXEL:
        if column in table_block.columns:
            return [(column, _number(value)) for value in table_block.column(column)]
    for block in table.blocks:
        for column in _PIXEL:
            if column not in block.columns:
                continue
            sizes = [_number(value) for value in block.column(column)]
            if _GROUP in table_block.columns and _GROUP in block.columns:
                of = dict(zip(block.column(_GROUP), sizes, strict=True))
                return [(column, of.get(group, math.nan)) for group in table_block.column(_GROUP)]
            if len(set(sizes)) == 1:
                return [(column, sizes[0])] * count
    return [("", math.nan)] * count


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _borders(table: ParticleTable, headers: dict[Path, MrcHeader], box: int) -> tuple[str, ...]:
    across = []
    for particle in table.particles:
        if particle.centre is None or particle.file not in headers:
            continue
        header = headers[particle.file]
        if len(header.shape) == 3:
            _, low = particle.corner(box, header.voxel)
            shape = np.array([header.shape[axis] for axis in header.axes])
            if (low < 0).any() or (low + box > shape).any():
                across.append(particle.id)
    if not across:
        return ()
    return (
        f"{len(across):,} of {len(table.particles):,} boxes of {box} voxels reach beyond their "
        f"tomogram and are filled with the mean of the rest, first that of {across[0]!r}.",
    )
