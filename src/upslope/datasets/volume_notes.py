"""Sentences on the MRC files of a table of particles: odd headers, pixel sizes, the border."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from upslope.cryoet.mrc import MrcHeader, read_header
from upslope.cryoet.particles import ParticleTable
from upslope.errors import DataError

_PIXEL = (
    "rlnTomoTiltSeriesPixelSize",
    "rlnMicrographPixelSize",
    "rlnImagePixelSize",
    "rlnPixelSize",
)
"""Columns that may state, in angstrom, the pixels in which coordinates are counted."""
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


def _other_pixels(table: ParticleTable, headers: dict[Path, MrcHeader]) -> tuple[str, ...]:
    """Whether the table states pixels of one size, and the tomograms have voxels of another."""
    tomograms = {particle.file for particle in table.particles if particle.centre is not None}
    for block in table.blocks:
        for column in _PIXEL:
            sizes = set(block.column(column)) if column in block.columns else set()
            try:
                stated = {float(size) for size in sizes}
            except ValueError:
                continue
            if len(stated) != 1:
                continue
            (pixel,) = stated
            other = [
                file
                for file in sorted(tomograms & headers.keys())
                if pixel > 0 and not 1 / _RATIO < headers[file].voxel / pixel < _RATIO
            ]
            if other:
                return (
                    f"{table.path.name} states pixels of {pixel:g} angstrom ({column}) and "
                    f"{other[0].name} has voxels of {headers[other[0]].voxel:g} ({len(other)} of "
                    f"{len(tomograms)} tomograms). Coordinates are taken as voxels of the file: "
                    "scale them if they are counted in those pixels.",
                )
    return ()


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
