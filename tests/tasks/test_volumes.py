"""Symmetries of the missing wedge: that they are those, and all of those."""

from itertools import product

import numpy as np
import pytest
import torch

from upslope.errors import ConfigError
from upslope.tasks import Classification
from upslope.tasks.volumes import wedge_symmetry


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def wedge(n, degrees):
    z, _, x = np.meshgrid(*[np.fft.fftfreq(n) * n] * 3, indexing="ij")
    return np.abs(z) <= np.tan(np.radians(degrees)) * np.abs(x)


@pytest.mark.parametrize("mirror", [False, True])
def test_measured_region_stays_where_it_is(mirror):
    n, measured = 16, wedge(16, 60)
    noise = np.random.default_rng(0).normal(size=(n, n, n))
    volume = np.fft.ifftn(np.fft.fftn(noise) * measured)
    assert np.abs(volume.imag).max() < 1e-12
    batch = torch.tensor(volume.real).expand(32, 1, n, n, n)
    turned = wedge_symmetry(batch, 3, mirror=mirror, rng=rng())[:, 0].numpy()
    assert len({v.tobytes() for v in turned}) > 25
    power = np.abs(np.fft.fftn(turned, axes=(1, 2, 3)))
    assert power[:, ~measured].max() < 1e-10 * power.max()


def test_each_is_a_shifted_symmetry_and_all_occur():
    n = 6
    volume = torch.randn(2, n, n, n, generator=rng(1))
    for mirror, count in ((False, 4), (True, 8)):
        batch = volume.expand(400, 2, n, n, n)
        got = wedge_symmetry(batch, 1, mirror=mirror, rng=rng(2)).numpy()
        known = {}
        for reverse in product((0, 1), repeat=3):
            axes = [k + 1 for k in range(3) if reverse[k]]
            flipped = np.flip(volume.numpy(), axes)
            # np.flip turns about (n - 1) / 2; one voxel on lies the centre n // 2.
            flipped = np.roll(flipped, 1, axes)
            for shift in product((-1, 0, 1), repeat=3):
                known[np.roll(flipped, shift, (1, 2, 3)).tobytes()] = (reverse, shift)
        drawn = [known[np.ascontiguousarray(v).tobytes()] for v in got]
        reversals = {reverse for reverse, _ in drawn}
        assert len(reversals) == count
        if not mirror:
            assert all(sum(reverse) % 2 == 0 for reverse in reversals)
        assert len({shift for _, shift in drawn}) == 27


def test_option_of_classification():
    task = Classification(2, augmentation="half-turns", pad=1)
    volumes, targets = torch.randn(3, 1, 8, 8, 8), torch.zeros(3, dtype=torch.long)
    got, same = task.augment(volumes, targets, rng())
    assert got.shape == volumes.shape
    assert same is targets
    torch.testing.assert_close(got.flatten(1).sort().values, volumes.flatten(1).sort().values)
    with pytest.raises(ConfigError, match=r"volumes.*'half-turns' but got shape \(3, 1, 8, 8\)"):
        task.augment(volumes[..., 0], targets, rng())
