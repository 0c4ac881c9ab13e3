"""From a structure to a template: its density, band-limited, ready to be turned and sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upslope.cryoet.imaging import Imaging, Volume, band_limit, frequencies
from upslope.cryoet.structures import Atoms, Map, Structure
from upslope.errors import DataError

MOLMAP = 0.225
"""Sigma of the Gaussian of an atom by the resolution: 1 / (pi sqrt(2)), where its Fourier
transform falls to 1/e; the convention of Chimera's molmap."""

_FINE = 2  # samples of a template a voxel: twice what its band needs, so that splines are exact
_SPLAT = 4  # cells a voxel into which atoms are shared out


@dataclass(frozen=True, eq=False)
class Template:
    """coefficients: of the cubic splines through the density, on a grid of half voxels, as wide
    as the box; the molecule's centre lies at index `box` of each axis."""

    id: str
    coefficients: NDArray[np.float32]


def template(structure: Structure, imaging: Imaging) -> Template:
    """Return the density of a structure at the stated resolution, without what a voxel cannot hold.

    Atoms are Gaussians of sigma 0.225 times the resolution, weighted by atomic number. Maps keep
    the resolution that they have. Both are cut off smoothly in Fourier space towards 1/(2 voxel),
    as binning a tomogram does, so that no turn of the template aliases.

    Raises:
        DataError: the structure does not fit into the box.
    """
    from scipy import ndimage

    size = _FINE * imaging.box
    step = imaging.voxel / _FINE
    if isinstance(structure, Atoms):
        density = _of_atoms(structure, imaging, size)
    else:
        density = _of_map(structure, imaging, size, step)
    coefficients = ndimage.spline_filter(density, order=3, mode="mirror").astype(np.float32)
    return Template(structure.id, coefficients)


def place(
    template: Template, imaging: Imaging, rotation: NDArray[np.float64], shift: NDArray[np.float64]
) -> Volume:
    """Return the template turned by `rotation` (3, 3), moved by `shift` voxels (3,), in its box.

    Both act on (z, y, x). Returns (box, box, box); the unturned centre is voxel box // 2.
    """
    from scipy import ndimage

    back = _FINE * rotation.T  # from voxels of the box to samples of the template
    centre = imaging.box // 2 + shift
    result: Volume = ndimage.affine_transform(
        template.coefficients,
        back,
        offset=_FINE * imaging.box // 2 - back @ centre,
        output_shape=(imaging.box,) * 3,
        order=3,
        mode="constant",
        prefilter=False,
        output=np.float64,
    )
    return result


def _of_atoms(atoms: Atoms, imaging: Imaging, size: int) -> Volume:
    """Atoms shared out among the eight cells around each, then blurred exactly in Fourier space.

    The blur by the sharing out, sinc^2 along each axis, is divided out again.
    """
    from scipy import fft

    half = imaging.box * imaging.voxel / 2
    reach = float(np.linalg.norm(atoms.xyz, axis=1).max())
    if reach > half:
        raise DataError(
            f"Expected {atoms.id} to fit into {imaging.box} voxels of {imaging.voxel:g} angstrom, "
            f"{half:.0f} around its centre, but it reaches out to {reach:.0f}. Take a larger box "
            "or larger voxels."
        )
    cells = _SPLAT * imaging.box
    cell = imaging.voxel / _SPLAT
    places = atoms.xyz[:, ::-1] / cell + cells // 2  # (n, 3) in z, y, x
    low = np.floor(places).astype(np.int64)
    share = places - low
    grid = np.zeros(cells**3)
    for corner in np.ndindex(2, 2, 2):
        bits = np.array(corner)
        weight = atoms.weights * np.where(bits, share, 1 - share).prod(axis=1)
        index = (low + bits) % cells
        flat = (index[:, 0] * cells + index[:, 1]) * cells + index[:, 2]
        grid += np.bincount(flat, weight, minlength=cells**3)
    spectrum = fft.rfftn(grid.reshape((cells,) * 3))
    sigma = MOLMAP * imaging.resolution
    for k in frequencies(cells, cell):
        spectrum *= np.exp(-2 * (np.pi * sigma * k) ** 2) / np.sinc(k * cell) ** 2
    return _cut(spectrum, cells, size, imaging)


def _of_map(source: Map, imaging: Imaging, size: int, step: float) -> Volume:
    """Return the map about the centre of mass of what is positive in it, on the grid of the
    template.
    """
    from scipy import fft, ndimage

    density = source.density.astype(np.float64)
    ratio = step / source.voxel
    if ratio > 1:  # finer than the template: low-pass before sampling it
        density = ndimage.gaussian_filter(density, 0.5 * ratio)
    positive = np.clip(density, 0, None)
    if not positive.any():
        raise DataError(f"Expected a positive density in the map {source.id} but got none.")
    centre = np.array(ndimage.center_of_mass(positive))
    grid = ndimage.affine_transform(
        density,
        np.full(3, ratio),
        offset=centre - ratio * (size // 2),
        output_shape=(size,) * 3,
        order=3,
        mode="constant",
    )
    return _cut(fft.rfftn(grid), size, size, imaging)


def _cut(spectrum: NDArray[np.complex128], grid_size: int, size: int, imaging: Imaging) -> Volume:
    """Return the spectrum of a grid of `grid_size` cells, band-limited to the voxels, on one of
    `size`.
    """
    from scipy import fft

    extent = imaging.box * imaging.voxel
    z, y, x = frequencies(grid_size, extent / grid_size)
    spectrum = spectrum * band_limit(np.sqrt(z**2 + y**2 + x**2), 0.5 / imaging.voxel)
    if grid_size != size:
        half = size // 2
        keep = np.r_[
            0:half, grid_size - half : grid_size
        ]  # nothing is left at the new Nyquist frequency
        spectrum = spectrum[np.ix_(keep, keep, np.arange(half + 1))]
    result: Volume = fft.irfftn(spectrum, s=(size,) * 3)
    return result
