"""Templates against sums over atoms, in Fourier space; turning a template against turning atoms."""

import numpy as np
import pytest
from molecules import molecule
from scipy import stats

from upslope.cryoet.density import place, template
from upslope.cryoet.imaging import Imaging
from upslope.cryoet.simulate import rotation_matrix
from upslope.cryoet.structures import Atoms, Map
from upslope.errors import DataError

SEEN = Imaging()


def exact(atoms, seen, volume_shape):
    """The spectrum of the box, atom by atom: sum_a w_a exp(-2 pi i k.r_a), blurred and cut off."""
    box, voxel = seen.box, seen.voxel
    k1 = np.fft.fftfreq(box, voxel)
    z, y, x = np.meshgrid(k1, k1, k1, indexing="ij")
    k = np.sqrt(z**2 + y**2 + x**2)
    spectrum = np.zeros(volume_shape, dtype=complex)
    centre = box // 2 * voxel
    for (ax, ay, az), weight in zip(atoms.xyz, atoms.weights, strict=True):
        phase = z * (az + centre) + y * (ay + centre) + x * (ax + centre)
        spectrum += weight * np.exp(-2j * np.pi * phase)
    sigma = seen.resolution / (np.pi * np.sqrt(2))
    spectrum *= np.exp(-2 * (np.pi * sigma * k) ** 2)
    edge = np.clip((k * 2 * voxel - 0.8) / 0.2, 0, 1)
    return spectrum * 0.5 * (1 + np.cos(np.pi * edge))


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_atoms_are_gaussians_of_the_stated_resolution():
    atoms = molecule()
    got = np.fft.fftn(place(template(atoms, SEEN), SEEN, np.eye(3), np.zeros(3)))
    expected = exact(atoms, SEEN, got.shape)
    scale = got.flat[0].real / expected.flat[0].real
    assert relative(got, scale * expected) < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_turning_the_template_is_turning_the_atoms(seed):
    rng = np.random.default_rng(seed)
    rotation, shift = rotation_matrix(rng.standard_normal(4)), rng.uniform(-2, 2, 3)
    atoms = molecule(seed)
    got = place(template(atoms, SEEN), SEEN, rotation, shift)
    moved = atoms.xyz[:, ::-1] @ rotation.T + shift * SEEN.voxel  # on (z, y, x)
    turned = Atoms("turned", moved[:, ::-1], atoms.weights)
    expected = np.fft.ifftn(exact(turned, SEEN, got.shape)).real
    expected *= got.sum() / expected.sum()
    assert relative(got, expected) < 0.02


def test_maps_are_resampled_about_their_centre():
    """A map of Gaussian blobs on a grid of its own against the same blobs evaluated in the box."""
    blobs = np.array([[30.0, -20, 10], [-40, 5, 0], [0, 45, -30]])  # z, y, x in angstrom
    weights, sigma = np.array([1.0, 2, 1.5]), 18.0

    def density(shape, voxel, centre):
        grids = np.meshgrid(*[np.arange(s) * voxel for s in shape], indexing="ij")
        total = np.zeros(shape)
        for blob, weight in zip(blobs, weights, strict=True):
            square = sum((g - c - b) ** 2 for g, c, b in zip(grids, centre, blob, strict=True))
            total += weight * np.exp(-square / (2 * sigma**2))
        return total

    mean = (weights[:, None] * blobs).sum(axis=0) / weights.sum()
    for voxel in (4.0, 7.3, 10.0):
        size = int(300 / voxel)
        source = Map("m", density((size, size + 3, size + 1), voxel, [150, 155, 148]), voxel)
        got = place(template(source, SEEN), SEEN, np.eye(3), np.zeros(3))
        expected = density((32, 32, 32), 10.0, np.full(3, 160.0) - mean)
        assert relative(got, expected * got.sum() / expected.sum()) < 0.03


def test_nothing_beyond_what_a_voxel_holds():
    rotation = rotation_matrix(np.array([1.0, 2, 3, 4]))
    volume = place(template(molecule(3), SEEN), SEEN, rotation, np.zeros(3))
    k1 = np.fft.fftfreq(32)
    k = np.sqrt(sum(g**2 for g in np.meshgrid(k1, k1, k1)))
    power = np.abs(np.fft.fftn(volume))
    assert power[k > 0.52].max() < 3e-3 * power.max()  # what cubic splines leave


def test_molecule_wider_than_the_box():
    with pytest.raises(DataError, match=r"toy to fit into 16 voxels .*80 around .* out to 1\d\d"):
        template(molecule(reach=150.0, n=400), Imaging(box=16))
    with pytest.raises(DataError, match="positive density in the map empty"):
        template(Map("empty", np.zeros((8, 8, 8), dtype=np.float32), 10.0), SEEN)


def test_rotations_are_uniform():
    rng = np.random.default_rng(0)
    rotations = np.stack([rotation_matrix(rng.standard_normal(4)) for _ in range(4000)])
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1),
        np.broadcast_to(np.eye(3), (4000, 3, 3)),
        atol=1e-9,
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    # Under the Haar measure each column is uniform on the sphere, so that each entry is uniform
    # on [-1, 1], and the angle has density (1 - cos a) / pi.
    for i, j in np.ndindex(3, 3):
        assert stats.kstest(rotations[:, i, j], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    angles = np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angles, lambda a: (a - np.sin(a)) / np.pi).pvalue > 1e-3
