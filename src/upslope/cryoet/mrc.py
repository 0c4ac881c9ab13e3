"""MRC files: volumes and stacks of volumes, with an isotropic voxel size, checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from upslope.cryoet.mrc_header import HEADER_BYTES, MrcHeader, parse_header
from upslope.errors import DataError
from upslope.extras import import_package
from upslope.files import write_atomically
from upslope.reading import check_room, compression_of, count_rest, open_unpacked, reporting_damage


@dataclass(frozen=True, eq=False)
class MrcVolume:
    """values: (..., z, y, x); voxel: edge in angstrom."""

    values: NDArray[np.float32]
    voxel: float


@dataclass(frozen=True, eq=False)
class MappedVolume:
    """values: (..., z, y, x) in the type of the file, read as they are looked at; voxel: edge."""

    values: NDArray[np.generic]
    voxel: float
    oddities: tuple[str, ...] = ()


def read_volume(path: Path, voxel: float | None = None) -> MrcVolume:
    """Read a volume (z, y, x), or a stack of volumes (n, z, y, x), of an MRC file.

    The file may be compressed with gzip or bzip2. voxel: the voxel size where the header has none.
    The values are float32. Oddities of the header are told in a warning.

    Raises:
        DataError: the file is truncated or no MRC file, holds complex numbers, NaN or infinity,
            has no voxel size, or one that differs between the axes.
        ConfigError: mrcfile is not installed.
    """
    density_map = map_volume(path, voxel)
    for oddity in density_map.oddities:
        warnings.warn(f"{path} {oddity}.", stacklevel=2)
    return MrcVolume(finite(density_map.values, path), density_map.voxel)


def map_volume(path: Path, voxel: float | None = None) -> MappedVolume:
    """Map a volume into memory: of a tomogram, only the pages that are looked at are read.

    A compressed file cannot be mapped, and is read. Values are not checked: `finite` does that.

    Raises:
        DataError, ConfigError: as for `read_volume`, but for what the values are.
    """
    grid: NDArray[np.generic]
    with _reading(path) as file:
        if compression_of(path) is None:
            header = parse_header(file.read(HEADER_BYTES), path.stat().st_size, path, voxel)
            grid = np.memmap(path, header.kind, "r", header.offset, header.shape)
        else:
            header, grid = _unpacked_values(file, path, voxel)
    front = tuple(range(grid.ndim - 3))
    order = (*front, *(len(front) + axis for axis in header.axes))
    return MappedVolume(grid.transpose(order), header.voxel, header.oddities)


def read_header(path: Path, voxel: float | None = None) -> MrcHeader:
    """Read the header of an MRC file, and check it against the length of an uncompressed file.

    Raises:
        DataError, ConfigError: as for `map_volume`.
    """
    with _reading(path) as file:
        size = path.stat().st_size if compression_of(path) is None else None
        return parse_header(file.read(HEADER_BYTES), size, path, voxel)


def finite(values: NDArray[np.generic], name: object) -> NDArray[np.float32]:
    """Return the values, which messages call `name`, as float32.

    Raises:
        DataError: NaN or infinity.
    """
    floats = np.asarray(values).astype(np.float32)
    if not np.isfinite(floats).all():
        bad = int((~np.isfinite(floats)).sum())
        raise DataError(
            f"Expected finite numbers in {name} but {bad} of {floats.size} voxels are NaN or "
            "infinite. Repair or remove the file."
        )
    return floats


def write_volume(path: Path, values: NDArray[np.generic], voxel: float) -> None:
    """Write (z, y, x) as a volume, (n, z, y, x) as a stack of volumes, in float32, whole or not at
    all.

    Raises:
        ConfigError: mrcfile is not installed.
        RunError: the disk is full or cannot be written.
    """
    mrcfile = import_package("mrcfile", "to write this file", "cryoet")

    def write(temporary: Path) -> None:
        with mrcfile.new(temporary, overwrite=True) as out:
            out.set_data(values.astype(np.float32))  # four dimensions make it a stack of volumes
            out.voxel_size = voxel

    write_atomically(path, write)


def _unpacked_values(
    file: IO[bytes], path: Path, voxel: float | None
) -> tuple[MrcHeader, NDArray[np.generic]]:
    """Return the header and the values of a compressed file, which `file` unpacks; the length that
    the header asks for is checked before so much is read.
    """
    raw = file.read(HEADER_BYTES)
    stated_header = parse_header(raw, None, path, voxel)
    needed_size = (
        stated_header.offset + math.prod(stated_header.shape) * stated_header.kind.itemsize
    )
    check_room(needed_size, path)
    content = raw + file.read(needed_size - len(raw))
    size = len(content) + count_rest(file, path, len(content))
    header = parse_header(raw, size, path, voxel)  # the other byte order, where that alone fits
    count = math.prod(header.shape)
    values = np.frombuffer(content, header.kind, count, header.offset)
    return header, values.reshape(header.shape)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked where it is compressed; failures become DataErrors."""
    with reporting_damage(f"an MRC file in {path}", "Get it again."), open_unpacked(path) as file:
        yield file
