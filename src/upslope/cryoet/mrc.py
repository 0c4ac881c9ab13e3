"""MRC files: volumes and stacks of volumes, with an isotropic voxel size, checked."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError

ANISOTROPY = 1e-3
"""Relative difference of voxel edges above which they count as different."""


@dataclass(frozen=True, eq=False)
class MrcVolume:
    """values: (..., z, y, x) float32; voxel: edge in angstrom."""

    values: NDArray[np.float32]
    voxel: float


def read_volume(path: Path, voxel: float | None = None) -> MrcVolume:
    """A volume (z, y, x), or a stack of volumes (n, z, y, x), of an MRC2014 file, gzipped or not.

    voxel: the voxel size where the header has none.

    Raises:
        DataError: the file is truncated or no MRC file, holds complex numbers, NaN or infinity,
            has no voxel size, or one that differs between the axes.
        ConfigError: mrcfile is not installed.
    """
    from upslope.cryoet.structures import needed

    mrcfile = needed("mrcfile")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # mrcfile warns of files cut short
            with mrcfile.open(path, permissive=False) as opened:
                data = np.array(opened.data)
                edges = [float(getattr(opened.voxel_size, axis)) for axis in "xyz"]
    except (ValueError, OSError, EOFError, RuntimeWarning) as error:
        raise DataError(
            f"Expected an MRC file in {path} but reading it failed: {error}. Get it again."
        ) from error
    if data.ndim not in (3, 4) or data.dtype.kind not in "fiu":
        raise DataError(
            f"Expected volumes of real numbers in {path} but got shape {data.shape} of "
            f"{data.dtype}."
        )
    values = data.astype(np.float32)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise DataError(
            f"Expected finite numbers in {path} but {bad} of {values.size} voxels are NaN or "
            "infinite. Repair or remove the file."
        )
    return MrcVolume(values, _isotropic(path, edges, voxel))


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
