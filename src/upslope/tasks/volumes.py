"""Random variants of subtomograms that leave the missing wedge where it is.

A tilt series about the y axis, with the beam along z, measures the Fourier coefficients with
|k_z| <= tan(tilt) |k_x|. Of all rotations, the half-turns about x, y and z alone map that region
onto itself; so do their products with the mirror image (x, y, z) -> (-x, -y, -z), which together
are all sign changes of the axes. Any other rotation would turn the wedge, and let a network learn
from where it lies. Mirror images of a protein do not exist: they serve where the resolution is
too low to tell.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wedge_symmetry(volumes: Tensor, shift: int, *, mirror: bool, rng: torch.Generator) -> Tensor:
    """Return each volume turned by a random symmetry of the wedge, then shifted around its ends.

    volumes: (n, c, z, y, x), tilt axis y, beam z. shift: voxels at most, along each axis. mirror:
    all eight symmetries, not the four rotations alone. rng: on the CPU; two draws per batch: the
    reversed axes (n, 3), and the shifts (n, 3).
    """
    n, c = volumes.shape[:2]
    reversed_axes = torch.randint(0, 2, (n, 3), generator=rng)
    if not mirror:  # a rotation reverses an even number of axes
        reversed_axes[:, 2] = (reversed_axes[:, 0] + reversed_axes[:, 1]) % 2
    shifts = torch.randint(-shift, shift + 1, (n, 3), generator=rng)
    index = torch.zeros((n, 1, 1, 1), dtype=torch.int64)
    for axis, size in enumerate(volumes.shape[2:]):
        place = (torch.arange(size) - shifts[:, axis, None]) % size  # (n, size)
        # Reversed about the voxel size // 2, where the centre of a Fourier transform lies.
        place = torch.where(
            reversed_axes[:, axis, None] == 1, (2 * (size // 2) - place) % size, place
        )
        along = [n, 1, 1, 1]
        along[axis + 1] = size
        index = index * size + place.reshape(along)
    flat = index.reshape(n, 1, -1).to(volumes.device, non_blocking=True)
    return volumes.flatten(2).gather(2, flat.expand(n, c, -1)).reshape(volumes.shape)
