"""Simulated subtomograms: one from a seed, or many in threads, the same whoever computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import cpu_count

import numpy as np
from numpy.typing import NDArray

from upslope.cryoet.density import Template, place
from upslope.cryoet.imaging import Imaging, Volume, image
from upslope.progress import Observer, Progress, no_progress
from upslope.seeds import derive
from upslope.threads import Threads

_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Sample:
    """volume: (box, box, box) in z, y, x at mean 0 and variance 1; how the molecule lies in it:
    rotation (3, 3) and shift (3,) in voxels, both on (z, y, x)."""

    volume: Volume
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass(frozen=True)
class Simulation:
    """`count` samples, an equal share of each template: sample i shows template i % n.

    Sample i depends on (seed, split, i), the imaging and its template, and on nothing else.

    templates: what is imaged.
    """

    templates: Sequence[Template]
    imaging: Imaging
    count: int
    seed: int
    split: str

    def label(self, i: int) -> int:
        """Return the position of the template that sample i shows."""
        return i % len(self.templates)

    def sample(self, i: int) -> Sample:
        """Return sample i, simulated from its own seed."""
        seed = derive(self.seed, "subtomogram", self.split, i)
        return simulate(self.templates[self.label(i)], self.imaging, seed)

    def run(
        self,
        keep: Callable[[int, Volume], None],
        *,
        threads: int | None = None,
        progress: Observer = no_progress,
    ) -> None:
        """Call `keep(i, volume)` once for each sample, from several threads, in any order.

        threads: as many as the machine has cores, if not given. The transforms and the splines,
        where the time goes, run outside Python's lock.

        progress: called with the number of samples done.
        """
        progress(Progress("simulate", 0, self.count))
        with Threads(threads or cpu_count() or 1, "upslope-simulate") as pool:
            for start in range(0, self.count, _CHUNK):
                chunk = range(start, min(start + _CHUNK, self.count))
                for _ in pool.map(lambda i: keep(i, self.sample(i).volume), chunk):
                    pass
                progress(Progress("simulate", chunk.stop, self.count))


def simulate(template: Template, imaging: Imaging, seed: int) -> Sample:
    """Return one subtomogram: the template at a random place, seen by the microscope.

    Rotations are uniform (Haar), shifts uniform in a cube. Draws: four normal numbers for the
    rotation, three for the shift, then those of `imaging.image`.

    template: the density. imaging: the microscope. seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    rotation = rotation_matrix(rng.standard_normal(4))
    shift = rng.uniform(-imaging.shift, imaging.shift, size=3)
    volume = place(template, imaging, rotation, shift)
    return Sample(image(volume, imaging, rng), rotation, shift)


def rotation_matrix(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (3, 3) of a quaternion (w, a, b, c) of any length.

    Four independent normal numbers have no preferred direction in four dimensions; the rotations
    of such quaternions are uniform (K. Shoemake, Uniform Random Rotations, 1992).
    """
    w, a, b, c = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
            [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
            [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)],
        ]
    )
