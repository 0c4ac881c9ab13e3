"""The microscope, in Fourier space: resolution, contrast transfer, missing wedge, noise.

Frequencies k are in 1/angstrom. What is modelled, and what is left out, is in docs/cryoet.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.errors import ConfigError
from upslope.options import Options

Spectrum = NDArray[np.float64]
Volume = NDArray[np.float64]

_PLANCK, _MASS, _CHARGE, _LIGHT = 6.62607015e-34, 9.1093837e-31, 1.602176634e-19, 2.99792458e8
_EDGE = 0.8  # of the band limit, where its cosine edge begins


Box = Annotated[int, Field(ge=8, le=256, description="voxels along each edge, even")]
Voxel = Annotated[float, Field(gt=0, description="voxel edge in angstrom")]
Resolution = Annotated[
    float, Field(gt=0, description="angstrom; Gaussian of sigma 0.225 times it, as molmap")
]
Shift = Annotated[
    float, Field(ge=0, description="voxels at most off centre, along each axis, uniform")
]
Tilt = Annotated[
    float, Field(gt=0, le=90, description="degrees of the largest tilt; 90: no wedge missing")
]
DefocusLow = Annotated[
    float, Field(ge=0, description="micrometre under focus, lowest; 0 for both: no CTF")
]
DefocusHigh = Annotated[
    float, Field(ge=0, description="micrometre under focus, highest; uniform between")
]
Voltage = Annotated[float, Field(gt=0, description="kilovolt")]
Spherical = Annotated[float, Field(ge=0, description="spherical aberration in millimetre")]
Amplitude = Annotated[float, Field(ge=0, le=1, description="share of amplitude contrast")]
Snr = Annotated[
    float | None, Field(gt=0, description="variance of signal over that of noise; none: clean")
]


@dataclass(frozen=True)
class Imaging(Options):
    """How a molecule becomes a subtomogram.

    The defaults are those of the presets: a tilt series of +-60 degrees about y, at 300 kV,
    without defocus and noise.
    """

    name: ClassVar[str] = "imaging"

    box: Box = 32
    voxel: Voxel = 10.0
    resolution: Resolution = 20.0
    shift: Shift = 1.0
    tilt: Tilt = 60.0
    defocus_low: DefocusLow = 0.0
    defocus_high: DefocusHigh = 0.0
    voltage: Voltage = 300.0
    spherical: Spherical = 2.7
    amplitude: Amplitude = 0.1
    snr: Snr = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box % 2:
            raise ConfigError(f"Expected `data.box` to be even but got {self.box}.")
        if self.defocus_low > self.defocus_high:
            raise ConfigError(
                f"Expected `data.defocus_low` to be at most `data.defocus_high` but got "
                f"{self.defocus_low} and {self.defocus_high} micrometre."
            )


def frequencies(box: int, voxel: float) -> tuple[Spectrum, Spectrum, Spectrum]:
    """Return (k_z, k_y, k_x) of `scipy.fft.rfftn` over a cube, broadcastable, in 1/angstrom."""
    full: Spectrum = np.asarray(np.fft.fftfreq(box, voxel), dtype=np.float64)
    half: Spectrum = np.asarray(np.fft.rfftfreq(box, voxel), dtype=np.float64)
    return full[:, None, None], full[None, :, None], half[None, None, :]


def band_limit(k: Spectrum, limit: float) -> Spectrum:
    """1 up to 0.8 `limit`, 0 from `limit` on, a cosine between. k: absolute frequencies."""
    share = np.clip((k / limit - _EDGE) / (1 - _EDGE), 0, 1)
    result: Spectrum = 0.5 * (1 + np.cos(np.pi * share))
    return result


def wavelength(voltage: float) -> float:
    """Of electrons, in angstrom, relativistic. voltage: in kilovolt; 0.0197 at 300."""
    energy = _CHARGE * voltage * 1e3
    momentum = np.sqrt(2 * _MASS * energy * (1 + energy / (2 * _MASS * _LIGHT**2)))
    return float(_PLANCK / momentum * 1e10)


def contrast_transfer(
    k: Spectrum, defocus: float, *, voltage: float, spherical: float, amplitude: float
) -> Spectrum:
    """Return the contrast transfer at absolute frequencies k, for a specimen shown bright.

        CTF = sqrt(1 - A^2) sin(chi) + A cos(chi)
        chi = pi lambda dz k^2 - pi/2 C_s lambda^3 k^4

    defocus dz: micrometre under focus; spherical C_s: millimetre; amplitude A. At k = 0 it is A.
    (J. Frank, Three-Dimensional Electron Microscopy of Macromolecular Assemblies, 2006, with the
    sign that turns dark molecules bright.)

    voltage: kilovolt.
    """
    length = wavelength(voltage)
    chi = np.pi * length * (defocus * 1e4) * k**2
    chi = chi - 0.5 * np.pi * (spherical * 1e7) * length**3 * k**4
    result: Spectrum = np.sqrt(1 - amplitude**2) * np.sin(chi) + amplitude * np.cos(chi)
    return result


def measured_region(box: int, tilt: float) -> NDArray[np.bool_]:
    """Return which Fourier coefficients of `rfftn` a tilt series of +-`tilt` degrees measures.

    By the projection theorem an image at angle a, tilted about y, holds the plane
    k_z = k_x tan(a): those with |k_z| <= |k_x| tan(tilt) are measured, the wedge beyond is missing.
    The line k_x = k_z = 0, along the tilt axis, lies in every image.

    box: voxels along an edge.
    """
    if tilt >= 90:
        return np.ones((box, box, box // 2 + 1), dtype=bool)
    z, y, x = frequencies(box, 1.0)
    inside = np.abs(z) <= np.abs(x) * np.tan(np.radians(tilt)) + 1e-12
    return np.broadcast_to(inside, np.broadcast_shapes(z.shape, y.shape, x.shape)).copy()


@lru_cache(maxsize=8)
def _fixed_spectra(imaging: Imaging) -> tuple[NDArray[np.bool_], Spectrum]:
    """Return the measured region and the absolute frequencies, the same for every sample."""
    z, y, x = frequencies(imaging.box, imaging.voxel)
    return measured_region(imaging.box, imaging.tilt), np.sqrt(z**2 + y**2 + x**2)


def image(volume: Volume, imaging: Imaging, rng: np.random.Generator) -> Volume:
    """Return what the microscope makes of a density in its box, (box, box, box), at mean 0,
    variance 1.

    Signal: the density under the contrast transfer, without the missing wedge. Noise: white and
    Gaussian in what is measured, absent from the wedge as the signal is; scaled so that var(signal)
    / var(noise) over the box is exactly `snr`. Draws a defocus, then the noise.
    """
    from scipy import fft

    region, k = _fixed_spectra(imaging)
    defocus = float(rng.uniform(imaging.defocus_low, imaging.defocus_high))
    spectrum = fft.rfftn(volume) * region
    if imaging.defocus_high > 0:
        spectrum *= contrast_transfer(
            k,
            defocus,
            voltage=imaging.voltage,
            spherical=imaging.spherical,
            amplitude=imaging.amplitude,
        )
    signal = standardise(fft.irfftn(spectrum, s=volume.shape))
    if imaging.snr is None:
        return signal
    noise = fft.irfftn(fft.rfftn(rng.standard_normal(volume.shape)) * region, s=volume.shape)
    return standardise(signal + standardise(noise) / np.sqrt(imaging.snr))


def standardise(volume: Volume) -> Volume:
    """Mean 0 and variance 1; zeros where nothing varies."""
    spread = volume.std()
    difference: Volume = volume - volume.mean()
    return difference / spread if spread > 0 else difference
