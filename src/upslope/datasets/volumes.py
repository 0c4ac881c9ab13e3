"""Simulated subtomograms on the disk: made once, kept in a cache, read from it."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.cryoet.density import template
from upslope.cryoet.imaging import Imaging, Volume
from upslope.cryoet.simulate import Simulation
from upslope.cryoet.structures import Atoms, Structure
from upslope.datasets.arrays import Labels, known_targets, number_ids
from upslope.datasets.paths import cache_folder
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.files import reserve, write_atomically, write_text
from upslope.memory import raise_memory_error
from upslope.progress import Observer, no_progress

_DIGEST = hashlib.sha256().digest_size
VERSION = 1
"""Of the simulation: raise it whenever the same recipe would give other volumes."""


@dataclass(frozen=True, eq=False)
class VolumeDataset:
    """Subtomograms in a .npy file, (n, box, box, box) float16, read as they are asked for."""

    name: str
    classes: tuple[str, ...]
    path: Path
    box: int
    labels: Labels
    ids: Sequence[str]
    resident: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one volume, (1, box, box, box)."""
        return (1, self.box, self.box, self.box)

    @cached_property
    def volumes(self) -> NDArray[np.float16]:
        """Return the file mapped into memory. Raises DataError: it is damaged."""
        return _open_cache(self.path, (len(self), self.box, self.box, self.box))

    def __getstate__(self) -> dict[str, object]:
        """Without the mapping, which would travel to worker processes as a copy of the file."""
        return {k: v for k, v in self.__dict__.items() if k != "volumes"}

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return (n, 1, d, h, w) float32, at mean 0 and variance 1."""
        rows = self.volumes[np.asarray(indices, dtype=np.int64)]
        return torch.from_numpy(rows.astype(np.float32)[:, None])

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return the class of some particles, (n,) int64."""
        return known_targets(self.labels, self.ids, indices)


def simulate_splits(
    name: str,
    structures: Mapping[str, Structure],
    imaging: Imaging,
    *,
    train: int,
    test: int,
    seed: int = 0,
    cache: str | None = None,
    threads: int | None = None,
    memory: float = 4.0,
    progress: Observer = no_progress,
) -> Splits:
    """Return a pool and a test set of the structures, one class each, from the cache or made now.

    Raises:
        DataError: fewer than two structures, one that does not fit into the box, or a damaged file
            in the cache.
        RunError: the cache cannot be written.
    """
    if len(structures) < 2:
        raise DataError(f"Expected at least two structures to tell apart but got {[*structures]}.")
    folder = Path(cache).expanduser() if cache else cache_folder()
    recipe = {
        "version": VERSION,
        "imaging": asdict(imaging),
        "structures": {id_: _digest(structure) for id_, structure in structures.items()},
        "seed": seed,
    }
    parts: list[Simulation] = []

    def part(split: str, count: int) -> VolumeDataset:
        what = json.dumps({**recipe, "split": split, "count": count}, indent=1)
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        path = folder / f"{name}-{split}-{key}.npy"
        shape = (count, *(imaging.box,) * 3)
        if path.is_file() and not _sound(path, shape):
            warnings.warn(f"{path} is damaged: its volumes are simulated again.", stacklevel=2)
            path.unlink(missing_ok=True)
        if not path.is_file():
            if not parts:
                templates = [template(structure, imaging) for structure in structures.values()]
                parts.append(Simulation(templates, imaging, 1, seed, ""))
            simulation = Simulation(parts[0].templates, imaging, count, seed, split)
            write_atomically(path, lambda to: _write(to, simulation, shape, threads, progress))
            write_text(path.with_suffix(".json"), f"{what}\n")
        dataset = VolumeDataset(
            f"{name}/{split}",
            tuple(structures),
            path,
            imaging.box,
            np.arange(count, dtype=np.int64) % len(structures),
            number_ids(split, count),
            resident=4 * int(np.prod(shape)) <= memory * 2**30,
        )
        _ = dataset.volumes  # a damaged file is told now, not in the middle of a run
        return dataset

    return Splits(part("train", train), part("test", test))


def _digest(structure: Structure) -> str:
    arrays: list[NDArray[np.generic]] = (
        [structure.xyz, structure.weights]
        if isinstance(structure, Atoms)
        else [structure.density, np.array(structure.voxel)]
    )
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]


def _write(
    path: Path,
    simulation: Simulation,
    shape: tuple[int, ...],
    threads: int | None,
    progress: Observer,
) -> None:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    with path.open("rb+") as file:
        reserve(file.fileno(), path.stat().st_size + _DIGEST)

    def keep(i: int, volume: Volume) -> None:
        out[i] = volume

    simulation.run(keep, threads=threads, progress=progress)
    out.flush()
    with path.open("rb+") as file:
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(_content_digest(path))


def _sound(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether a cached file holds what was written, by the digest at its end; files of
    earlier versions have none, and are taken where they have the right shape.
    """
    try:
        volumes = _open_cache(path, shape)
        rest = path.stat().st_size - volumes.offset - volumes.nbytes  # type: ignore[attr-defined]
        if rest == 0:
            return True
        with path.open("rb") as file:
            file.seek(-_DIGEST, os.SEEK_END)
            return rest == _DIGEST and file.read() == _content_digest(path)
    except (DataError, OSError):
        return False


def _content_digest(path: Path) -> bytes:
    """SHA-256 of a file without the digest at its end."""
    sha256, left = hashlib.sha256(), path.stat().st_size - _DIGEST
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            sha256.update(part)
            left -= len(part)
    return sha256.digest()


def _open_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    try:
        volumes: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy's reader fails in any way there is on a damaged header
        raise_memory_error(error, of_file=True)
        raise DataError(
            f"Expected simulated volumes in {path} but reading it failed: {error}. Remove the "
            "file: it is made again."
        ) from error
    if volumes.shape != shape or volumes.dtype != np.float16:
        raise DataError(
            f"Expected float16 volumes of shape {shape} in {path} but got {volumes.dtype} "
            f"{volumes.shape}. Remove the file: it is made again."
        )
    return volumes
