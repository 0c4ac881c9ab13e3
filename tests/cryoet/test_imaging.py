"""The microscope: wedge, contrast transfer and noise, as measured on what it makes."""

import math

import numpy as np
import pytest
from molecules import molecule
from scipy import fft

from upslope.cryoet.density import place, template
from upslope.cryoet.imaging import (
    Imaging,
    contrast_transfer,
    image,
    measured_region,
    wavelength,
)
from upslope.cryoet.simulate import Simulation, simulate
from upslope.errors import ConfigError

SEEN = Imaging(snr=0.05, defocus_low=2, defocus_high=5)


def wedge(box, degrees):
    """Measured coefficients of a full transform, from the angle of each in the x-z plane."""
    k = np.fft.fftfreq(box)
    z, _, x = np.meshgrid(k, k, k, indexing="ij")
    angle = np.degrees(np.arctan2(np.abs(z), np.abs(x)))  # 0 on the line x = z = 0
    return angle <= degrees + 1e-9


@pytest.mark.parametrize("tilt", [40.0, 60.0, 75.0])
@pytest.mark.parametrize("snr", [None, 0.1])
def test_wedge_is_missing_from_the_transform(tilt, snr):
    volume = place(template(molecule(), SEEN), SEEN, np.eye(3), np.zeros(3))
    seen = Imaging(tilt=tilt, snr=snr)
    power = np.abs(np.fft.fftn(image(volume, seen, np.random.default_rng(0)))) ** 2
    measured = wedge(32, tilt)
    assert power[~measured].sum() < 1e-20 * power.sum()
    k1 = np.fft.fftfreq(32)
    low = np.sqrt(sum(g**2 for g in np.meshgrid(k1, k1, k1, indexing="ij"))) < 0.25
    assert np.median(power[measured & low]) > 1e-4 * np.median(power[low])
    share = measured_region(32, tilt).mean()
    # Within a cube the share is that of |z| <= |x| tan(tilt) in a square.
    tangent = math.tan(math.radians(tilt))
    expected = tangent / 2 if tangent < 1 else 1 - 1 / (2 * tangent)
    assert share == pytest.approx(expected, abs=0.05)


def test_no_wedge_at_ninety_degrees():
    assert measured_region(8, 90.0).all()


def test_projections_of_the_series_are_kept():
    """An image at any angle within the tilts is the same of the volume with the wedge missing."""
    rng = np.random.default_rng(1)
    volume = rng.normal(size=(16, 16, 16))
    cut = fft.irfftn(fft.rfftn(volume) * measured_region(16, 45.0), s=volume.shape)
    np.testing.assert_allclose(cut.sum(axis=0), volume.sum(axis=0))  # untilted, along z
    # At 45 degrees the plane k_z = k_x: sums along the diagonals x + z = const (mod 16).
    for data in (volume, cut):
        sheared = np.stack([np.roll(data[z], z, axis=1) for z in range(16)]).sum(axis=0)
        if data is volume:
            expected = sheared
    np.testing.assert_allclose(sheared, expected)


def test_contrast_transfer_by_hand():
    assert wavelength(300) == pytest.approx(0.0197, abs=5e-5)
    assert wavelength(200) == pytest.approx(0.0251, abs=5e-5)
    optics = {"voltage": 300.0, "spherical": 2.7, "amplitude": 0.1}
    k = np.array([0.0, 0.01, 0.03, 0.05])
    got = contrast_transfer(k, 3.0, **optics)
    assert got[0] == pytest.approx(0.1)
    for one, value in zip(k, got, strict=True):
        chi = math.pi * 0.019687 * 30000 * one**2 - math.pi / 2 * 2.7e7 * 0.019687**3 * one**4
        assert value == pytest.approx(
            math.sqrt(0.99) * math.sin(chi) + 0.1 * math.cos(chi), abs=1e-3
        )
    # Without amplitude contrast and aberration, zeros lie at lambda dz k^2 = 1, 2, ...
    zeros = np.sqrt(np.array([1.0, 2, 3]) / (wavelength(300) * 30000))
    bare = contrast_transfer(zeros, 3.0, voltage=300.0, spherical=0.0, amplitude=0.0)
    np.testing.assert_allclose(bare, 0, atol=1e-9)


def test_contrast_transfer_is_applied():
    volume = place(template(molecule(), SEEN), SEEN, np.eye(3), np.zeros(3))
    seen = Imaging(defocus_low=4, defocus_high=4)
    plain, seen_through = (
        np.fft.fftn(image(volume, one, np.random.default_rng(0))) for one in (Imaging(), seen)
    )
    k1 = np.fft.fftfreq(32, 10.0)
    k = np.sqrt(sum(g**2 for g in np.meshgrid(k1, k1, k1, indexing="ij")))
    there = wedge(32, 60.0) & (np.abs(plain) > 1e-3 * np.abs(plain).max())
    there.flat[0] = False
    ratio = (seen_through[there] / plain[there]).real
    expected = contrast_transfer(k[there], 4.0, voltage=300.0, spherical=2.7, amplitude=0.1)
    np.testing.assert_allclose(ratio / ratio[0], expected / expected[0], atol=1e-8)
    assert (expected < -0.5).any()  # the contrast turns within the band


@pytest.mark.parametrize("snr", [0.05, 0.5, 4.0])
def test_snr_is_as_stated(snr):
    """Measured as in the field: two images of the same molecule under independent noise correlate
    by snr / (1 + snr) (J. Frank and L. Al-Ali, 1975)."""
    shape = template(molecule(), SEEN)
    seen = Imaging(snr=snr)
    rng = np.random.default_rng(2)
    volume = place(shape, seen, np.eye(3), np.zeros(3))
    correlations = [(image(volume, seen, rng) * image(volume, seen, rng)).mean() for _ in range(40)]
    expected = snr / (1 + snr)
    error = np.std(correlations) / math.sqrt(40)
    assert abs(np.mean(correlations) - expected) < 4 * error + 1e-3
    clean = image(volume, Imaging(), rng)
    # And exactly, volume by volume: noisy = (signal + noise) / spread, with var(noise) = 1 / snr.
    noisy = image(volume, seen, np.random.default_rng(3))
    again = np.random.default_rng(3)
    again.uniform(0, 0)
    white = np.fft.ifftn(np.fft.fftn(again.standard_normal(volume.shape)) * wedge(32, 60.0)).real
    noise = (white - white.mean()) / white.std() / math.sqrt(snr)
    assert clean.var() / noise.var() == pytest.approx(snr)
    total = clean + noise
    np.testing.assert_allclose(noisy, total / total.std(), atol=1e-9)


def test_samples_depend_on_seed_split_and_number_alone():
    templates = [template(molecule(seed), SEEN) for seed in range(3)]
    volumes = {}
    for count, threads in ((70, 1), (70, 3), (7, 2)):
        simulation = Simulation(templates, SEEN, count, 5, "train")
        kept = {}
        simulation.run(kept.__setitem__, threads=threads)
        assert sorted(kept) == list(range(count))
        volumes[count, threads] = kept
    for i in range(70):
        assert np.array_equal(volumes[70, 1][i], volumes[70, 3][i])
    for i in range(7):
        assert np.array_equal(volumes[70, 1][i], volumes[7, 2][i])
    other = Simulation(templates, SEEN, 7, 5, "test").sample(0)
    assert not np.array_equal(other.volume, volumes[7, 2][0])
    assert [simulation.label(i) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_clean_and_noisy_show_the_same():
    shape = template(molecule(), SEEN)
    clean = simulate(shape, Imaging(defocus_low=2, defocus_high=5), 9)
    noisy = simulate(shape, SEEN, 9)
    assert np.array_equal(clean.rotation, noisy.rotation)
    assert np.array_equal(clean.shift, noisy.shift)
    assert np.abs(clean.shift).max() <= 1
    correlation = (clean.volume * noisy.volume).mean()
    assert correlation == pytest.approx(math.sqrt(0.05 / 1.05), abs=0.05)
    for sample in (clean, noisy):
        assert sample.volume.mean() == pytest.approx(0, abs=1e-9)
        assert sample.volume.var() == pytest.approx(1)


def test_options_out_of_range():
    with pytest.raises(ConfigError, match=r"`data.box` to be even but got 33"):
        Imaging(box=33)
    with pytest.raises(ConfigError, match=r"`snr` .* -1"):
        Imaging(snr=-1.0)
    with pytest.raises(ConfigError, match=r"`data.defocus_low` to be at most .* but got 3"):
        Imaging(defocus_low=3, defocus_high=2)
