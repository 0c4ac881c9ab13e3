"""Subtomograms of real tomograms: MRC volumes, stacks, or places in a tomogram.

A RELION STAR file or a CSV table lists them; see `upslope.cryoet.particles` for its columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from upslope.cryoet.mrc import MappedVolume, finite, map_volume
from upslope.cryoet.particles import Particle, read_particles
from upslope.datasets.arrays import UNKNOWN, Labels, known_targets
from upslope.datasets.class_labels import ordered_names
from upslope.datasets.decoding import EncodingOption, decode_text
from upslope.datasets.encoded import OnError, left_out_text
from upslope.datasets.missing import MissingLabels, is_missing, missing_notes
from upslope.datasets.paths import needed_root, visible
from upslope.datasets.splits import Splits
from upslope.datasets.subset import Subset, draw
from upslope.datasets.volume_notes import volume_notes
from upslope.errors import DataError
from upslope.progress import Observer, Progress, no_progress
from upslope.reading import file_stamp

WHERE = "your own tomograms: a .star or .csv file, or the folder that holds one"
_OPEN = 4  # files mapped into memory, of which only what is looked at is read
_INSIDE = 0.5  # least share of a box that must lie within its tomogram


@dataclass(frozen=True, eq=False)
class SubtomogramDataset:
    """Volumes cut out or read when they are asked for, each at mean 0 and variance 1.

    box: voxels along each edge. invert: change the sign, where the molecules are dark.
    voxel: the voxel size in angstrom where a header has none. place: what messages call the data
    set, the path that the user gave.
    """

    name: str
    particles: Sequence[Particle]
    ids: Sequence[str]
    classes: tuple[str, ...]
    labels: Labels
    box: int
    invert: bool
    voxel: float | None
    resident: bool = False
    place: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one volume, (1, box, box, box)."""
        return (1, self.box, self.box, self.box)

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return (n, 1, box, box, box) float32 in z, y, x. Raises DataError naming the particle's
        file.
        """
        out = np.empty((len(indices), *self.input_shape), dtype=np.float32)
        for k, i in enumerate(indices):
            out[k, 0] = self._volume(self.particles[i])
        return torch.from_numpy(out)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return (n,) int64. Raises DataError for a particle without a class."""
        return known_targets(self.labels, self.ids, indices)

    def _volume(self, particle: Particle) -> NDArray[np.float32]:
        file_values = _read(particle.file, self.voxel)
        if particle.centre is None:
            volume = finite(
                _of_stack(particle, file_values.values), f"{particle.id} of {particle.file}"
            )
            if volume.shape != (self.box,) * 3:
                raise DataError(
                    f"Expected {particle.id} to be of {self.box} voxels along each edge, as the "
                    f"first, but got {volume.shape} in {particle.file}. Crop or pad it."
                )
        else:
            volume = _cut(particle, file_values, self.box)
        spread = float(volume.std())
        if not spread > 0:
            raise DataError(
                f"Expected {particle.id} in {particle.file} to vary but it is constant."
            )
        sign = -1 if self.invert else 1
        result: NDArray[np.float32] = sign * (volume - volume.mean()) / spread
        return result


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    label: Annotated[
        str | None,
        Field(description="column of the classes; label or rlnClassNumber, if not given"),
    ] = None,
    box: Annotated[
        int | None, Field(ge=8, description="voxels to cut out of tomograms; volumes have theirs")
    ] = None,
    invert: Annotated[bool, Field(description="change the sign: molecules are dark")] = False,
    voxel: Annotated[
        float | None, Field(gt=0, description="angstrom, where a header has no voxel size")
    ] = None,
    test_share: Annotated[
        float, Field(gt=0, lt=1, description="share of each class, of the labelled, to test on")
    ] = 0.2,
    on_error: OnError = "raise",
    missing_labels: MissingLabels = None,
    encoding: EncodingOption = None,
) -> Splits:
    """Subtomograms of your own: a RELION STAR file or a CSV table, and MRC volumes or tomograms."""
    path = _table(needed_root(root, "subtomograms", WHERE))
    table = read_particles(
        path,
        label,
        is_missing=partial(is_missing, words=missing_labels),
        decode=partial(decode_text, encoding=encoding),
    )
    particles = table.particles
    if not particles:
        raise DataError(f"Expected particles in {path} but it lists none.")
    classes = tuple(sorted({p.label for p in particles if p.label}))
    ordered_names(classes, f"classes of the particles in {path}")  # refuses 1 beside 1.0
    if len(classes) < 2:
        raise DataError(
            f"Expected particles of at least two classes in {path} but got {list(classes)}. Name "
            "the column that holds them in `data.label`; leave it empty (or None) where nobody "
            "knows."
        )
    if particles[0].centre is None:
        box = _first_edge(particles, voxel, on_error)
    elif box is None:
        raise DataError(
            f"Expected `data.box`, the voxels to cut out around each place of {path}, but got none."
        )
    number = {name: i for i, name in enumerate(classes)} | {"": UNKNOWN}
    everything = SubtomogramDataset(
        path.stem,
        particles,
        tuple(p.id for p in particles),
        classes,
        np.array([number[p.label] for p in particles], dtype=np.int64),
        box,
        invert,
        voxel,
        place=str(path),
    )
    notes = table.notes + missing_notes(table.labels, missing_labels, "particles")
    notes += volume_notes(table, box, voxel)
    if on_error == "skip":
        everything = _readable(everything, progress)
    with_label = np.flatnonzero(everything.labels != UNKNOWN)
    ids = [everything.ids[i] for i in with_label.tolist()]
    positions, _ = draw(
        ids, everything.labels[with_label], round(test_share * len(with_label)), "test"
    )
    test = with_label[positions]
    pool = np.setdiff1d(np.arange(len(everything)), test)
    pool_part, test_part = (Subset(everything, part.tolist()) for part in (pool, test))
    return Splits(pool_part, test_part, notes=notes)


def _readable(dataset: SubtomogramDataset, progress: Observer) -> SubtomogramDataset:
    """Leave out the particles that cannot be used, of which one warning tells; reads all once.

    Raises:
        DataError: none can be used.
    """
    readable: list[int] = []
    errors: dict[int, DataError] = {}
    progress(Progress("read", 0, len(dataset)))
    for i in range(len(dataset)):
        try:
            dataset.inputs([i])
            readable.append(i)
        except DataError as error:
            errors[i] = error
        progress(Progress("read", i + 1, len(dataset)))
    if not errors:
        return dataset
    if not readable:
        raise errors[0]
    warnings.warn(left_out_text(dataset, errors, "particle"), stacklevel=2)
    return replace(
        dataset,
        particles=[dataset.particles[i] for i in readable],
        ids=tuple(dataset.ids[i] for i in readable),
        labels=dataset.labels[readable],
    )


def _first_edge(particles: Sequence[Particle], voxel: float | None, on_error: str) -> int:
    """Return the edge, in voxels, of the first particle's volume; with on_error="skip", of the
    first that can be read.

    Raises:
        DataError: that cannot be read.
    """
    for particle in particles[: 1 if on_error == "raise" else -1]:
        try:
            return int(_of_stack(particle, _read(particle.file, voxel).values).shape[0])
        except DataError:
            if on_error == "raise":
                raise
    last = particles[-1]
    return int(_of_stack(last, _read(last.file, voxel).values).shape[0])


def _table(path: Path) -> Path:
    if path.is_file():
        return path
    tables = visible(p for p in path.iterdir() if p.suffix.lower() in (".star", ".csv"))
    if len(tables) != 1:
        raise DataError(
            f"Expected one .star or .csv file in {path} but got "
            f"{[p.name for p in tables] or 'none'}. Name the file itself."
        )
    return tables[0]


def _read(path: Path, voxel: float | None) -> MappedVolume:
    return _map_file(path, voxel, file_stamp(path))


@lru_cache(maxsize=_OPEN)
def _map_file(path: Path, voxel: float | None, stamp: tuple[int, ...]) -> MappedVolume:  # noqa: ARG001
    return map_volume(path, voxel)


def _of_stack(particle: Particle, values: NDArray[np.generic]) -> NDArray[np.generic]:
    if particle.index is None:
        if values.ndim != 3:
            raise DataError(
                f"Expected one volume in {particle.file} but got a stack of {len(values)}. Name "
                "one of it as 000001@file."
            )
        return values
    if values.ndim != 4 or not 0 <= particle.index < len(values):
        description = f"a stack of {len(values)} volumes" if values.ndim == 4 else "a single volume"
        raise DataError(
            f"Expected volume {particle.index + 1} of a stack in {particle.file} but it holds "
            f"{description}."
        )
    volume: NDArray[np.generic] = values[particle.index]
    return volume


def _cut(particle: Particle, tomogram: MappedVolume, box: int) -> NDArray[np.float32]:
    """Return the box around a particle; where it leaves the tomogram, the mean of what is
    inside.
    """
    assert particle.centre is not None
    if tomogram.values.ndim != 3:
        raise DataError(f"Expected a tomogram in {particle.file} but got a stack of volumes.")
    centre, low = particle.corner(box, tomogram.voxel)
    start, stop = np.clip(low, 0, None), np.minimum(low + box, tomogram.values.shape)
    share = np.clip(stop - start, 0, None).prod() / box**3
    if share < _INSIDE:
        x, y, z = centre
        shape = tomogram.values.shape[::-1]
        raise DataError(
            f"Expected {particle.id} to lie in its tomogram {particle.file}, x, y, z within "
            f"{shape}, but only {share:.0%} of its box does, at {x:.1f}, {y:.1f}, {z:.1f}. "
            "Coordinates are in voxels of this very file: binned ones must be scaled."
        )
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    values = finite(tomogram.values[inside], f"{particle.id} of {particle.file}")
    out = np.full((box,) * 3, values.mean(), dtype=np.float32)
    out[tuple(slice(a, b) for a, b in zip(start - low, stop - low, strict=True))] = values
    return out
