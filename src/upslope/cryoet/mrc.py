"""MRC files: volumes and stacks of volumes, with an isotropic voxel size, checked."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError

_HEADER = 1024  # bytes, before the extended header
ANISOTROPY = 1e-3
"""Relative difference of voxel edges above which they count as different."""


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


def read_volume(path: Path, voxel: float | None = None) -> MrcVolume:
    """A volume (z, y, x), or a stack of volumes (n, z, y, x), of an MRC2014 file, gzipped or not.

    voxel: the voxel size where the header has none. The values are float32.

    Raises:
        DataError: the file is truncated or no MRC file, holds complex numbers, NaN or infinity,
            has no voxel size, or one that differs between the axes.
        ConfigError: mrcfile is not installed.
    """
    opened = map_volume(path, voxel)
    return MrcVolume(finite(opened.values, path), opened.voxel)


def map_volume(path: Path, voxel: float | None = None) -> MappedVolume:
    """The same without reading it: of a tomogram, only the pages that are looked at are read.

    A compressed file cannot be mapped, and is read. Values are not checked: `finite` does that.

    Raises:
        DataError, ConfigError: as for `read_volume`, but for what the values are.
    """
    from upslope.cryoet.structures import needed

    mrcfile = needed("mrcfile")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # mrcfile warns of files cut short
            with path.open("rb") as file:
                packed = file.read(3)[:2] in (b"\x1f\x8b", b"BZ")
            with (mrcfile.open if packed else mrcfile.mmap)(path, permissive=False) as opened:
                shape, kind = opened.data.shape, opened.data.dtype
                offset = _HEADER + int(opened.header.nsymbt)
                data = np.array(opened.data) if packed else None
                edges = [float(getattr(opened.voxel_size, axis)) for axis in "xyz"]
    except (ValueError, OSError, EOFError, RuntimeWarning) as error:
        raise DataError(
            f"Expected an MRC file in {path} but reading it failed: {error}. Get it again."
        ) from error
    if len(shape) not in (3, 4) or kind.kind not in "fiu":
        raise DataError(
            f"Expected volumes of real numbers in {path} but got shape {shape} of {kind}."
        )
    if data is None:
        data = np.memmap(path, kind, "r", offset, shape)
    return MappedVolume(data, _isotropic(path, edges, voxel))


def finite(values: NDArray[np.generic], name: object) -> NDArray[np.float32]:
    """The values, which messages call `name`, as float32. Raises DataError: NaN or infinity."""
    floats = np.asarray(values).astype(np.float32)
    if not np.isfinite(floats).all():
        bad = int((~np.isfinite(floats)).sum())
        raise DataError(
            f"Expected finite numbers in {name} but {bad} of {floats.size} voxels are NaN or "
            "infinite. Repair or remove the file."
        )
    return floats


def write_volume(path: Path, values: NDArray[np.generic], voxel: float) -> None:
    """Write (z, y, x) as a volume, (n, z, y, x) as a stack of volumes, in float32."""
    from upslope.cryoet.structures import needed

    mrcfile = needed("mrcfile")
    with mrcfile.new(path, overwrite=True) as out:
        out.set_data(values.astype(np.float32))  # four dimensions make it a stack of volumes
        out.voxel_size = voxel


def _isotropic(path: Path, edges: list[float], voxel: float | None) -> float:
    if not all(math.isfinite(e) and e > 0 for e in edges):
        if voxel is not None:
            return voxel
        raise DataError(
            f"Expected a voxel size in the header of {path} but got {edges} angstrom (x, y, z). "
            "Give `voxel`, in angstrom, or set it in the file."
        )
    if max(edges) - min(edges) > ANISOTROPY * max(edges):
        raise DataError(
            f"Expected voxels of one edge length in {path} but got {edges} angstrom (x, y, z). "
            "Resample the volume to cubic voxels."
        )
    return edges[0]
