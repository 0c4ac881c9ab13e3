"""Simulated subtomograms: the paper's two sets, and others of the user's own structures.

Volumes are simulated once, in threads, and kept in a cache; see docs/cryoet.md for the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from upslope.cryoet import imaging as optics
from upslope.cryoet.density import template
from upslope.cryoet.imaging import Imaging, Volume
from upslope.cryoet.simulate import Simulation
from upslope.cryoet.structures import ATOMS, MAPS, Atoms, Structure, read_library, read_structure
from upslope.datasets.arrays import Labels, known_targets, numbered
from upslope.datasets.base import Splits
from upslope.datasets.encoded import Memory
from upslope.datasets.files import needed_root
from upslope.errors import DataError
from upslope.files import write_atomically
from upslope.progress import Observer, silent

WHERE = "PDB, mmCIF or MRC files, or structures.npz and maps.npz"
LEFT_OUT = ("1s3x", "3gl1", "3qm1", "4gxy", "3hfm", "1f2n")
"""Of the 56 complexes collected for the presets, the five below 60 kDa, and a capsid wider than
the box. The in-situ averages (chlamy_*), which have noise and a wedge of their own, are no part."""
IN_SITU = "chlamy_"
CLASSES = 50
SEEN = Imaging(defocus_low=2.0, defocus_high=5.0)
"""Both presets: the same molecules at the same places under the same defocus, but for the noise."""
VERSION = 1
"""Of the simulation: raise it whenever the same recipe would give other volumes."""

Train = Annotated[int, Field(ge=1, description="subtomograms in the pool, the classes in turn")]
Test = Annotated[int, Field(ge=1, description="subtomograms to test on")]
Seed = Annotated[int, Field(ge=0, description="of the simulation; not that of the experiment")]
Cache = Annotated[
    str | None, Field(description="folder to keep volumes in; ~/.cache/upslope if not given")
]
Threads = Annotated[int | None, Field(ge=1, description="to simulate in; one a core if not given")]


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
        """(1, box, box, box)."""
        return (1, self.box, self.box, self.box)

    @cached_property
    def volumes(self) -> NDArray[np.float16]:
        """The file mapped into memory. Raises DataError: it is damaged."""
        return _opened(self.path, (len(self), self.box, self.box, self.box))

    def __getstate__(self) -> dict[str, object]:
        """Without the mapping, which would travel to worker processes as a copy of the file."""
        return {k: v for k, v in self.__dict__.items() if k != "volumes"}

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, 1, d, h, w) float32, at mean 0 and variance 1."""
        rows = self.volumes[np.asarray(indices, dtype=np.int64)]
        return torch.from_numpy(rows.astype(np.float32)[:, None])

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n,) int64."""
        return known_targets(self.labels, self.ids, indices)


def clean_50(
    root: Path | None = None,
    *,
    progress: Observer = silent,
    train: Train = 24_000,
    test: Test = 1_000,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = None,
    memory: Memory = 4.0,
) -> Splits:
    """50c-clean of the paper, simulated anew: 50 complexes, 32x32x32, noise free."""
    return _preset("50c-clean", root, SEEN, train, test, seed, cache, threads, memory, progress)


def noisy_50(
    root: Path | None = None,
    *,
    progress: Observer = silent,
    train: Train = 24_000,
    test: Test = 1_000,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = None,
    memory: Memory = 4.0,
) -> Splits:
    """50c-snr005 of the paper, simulated anew: 50 complexes, 32x32x32, at an SNR of 0.05."""
    seen = replace(SEEN, snr=0.05)
    return _preset("50c-snr005", root, seen, train, test, seed, cache, threads, memory, progress)


def load(
    root: Path | None = None,
    *,
    progress: Observer = silent,
    classes: Annotated[
        str | None, Field(description="ids with commas between; all of the folder if not given")
    ] = None,
    train: Train = 2_000,
    test: Test = 500,
    seed: Seed = 0,
    box: optics.Box = 32,
    voxel: optics.Voxel = 10.0,
    resolution: optics.Resolution = 20.0,
    shift: optics.Shift = 1.0,
    tilt: optics.Tilt = 60.0,
    defocus_low: optics.DefocusLow = 0.0,
    defocus_high: optics.DefocusHigh = 0.0,
    snr: optics.Snr = None,
    cache: Cache = None,
    threads: Threads = None,
    memory: Memory = 4.0,
) -> Splits:
    """Subtomograms simulated from structures of your own: PDB, mmCIF, MRC, or the paper's."""
    structures = _structures(root, "cryoet-simulated")
    if classes is not None:
        ids = [id_.strip() for id_ in classes.split(",")]
        if unknown := [id_ for id_ in ids if id_ not in structures]:
            raise DataError(
                f"Expected `classes` among the {len(structures)} structures of {root}, "
                f"{', '.join(list(structures)[:8])}, ..., but got {', '.join(unknown)}."
            )
        structures = {id_: structures[id_] for id_ in ids}
    seen = Imaging(
        box=box,
        voxel=voxel,
        resolution=resolution,
        shift=shift,
        tilt=tilt,
        defocus_low=defocus_low,
        defocus_high=defocus_high,
        snr=snr,
    )
    return simulated(
        "cryoet-simulated",
        structures,
        seen,
        train=train,
        test=test,
        seed=seed,
        cache=cache,
        threads=threads,
        memory=memory,
        progress=progress,
    )


def simulated(
    name: str,
    structures: Mapping[str, Structure],
    seen: Imaging,
    *,
    train: int,
    test: int,
    seed: int = 0,
    cache: str | None = None,
    threads: int | None = None,
    memory: float = 4.0,
    progress: Observer = silent,
) -> Splits:
    """A pool and a test set of the structures, one class each, from the cache or made now.

    Raises:
        DataError: fewer than two structures, one that does not fit into the box, or a damaged file
            in the cache.
        RunError: the cache cannot be written.
    """
    if len(structures) < 2:
        raise DataError(f"Expected at least two structures to tell apart but got {[*structures]}.")
    folder = Path(cache).expanduser() if cache else _default_cache()
    recipe = {
        "version": VERSION,
        "imaging": asdict(seen),
        "structures": {id_: _digest(structure) for id_, structure in structures.items()},
        "seed": seed,
    }
    made: list[Simulation] = []

    def part(split: str, count: int) -> VolumeDataset:
        what = json.dumps({**recipe, "split": split, "count": count}, indent=1)
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        path = folder / f"{name}-{split}-{key}.npy"
        shape = (count, *(seen.box,) * 3)
        if not path.is_file():
            if not made:
                templates = [template(structure, seen) for structure in structures.values()]
                made.append(Simulation(templates, seen, 1, seed, ""))
            simulation = Simulation(made[0].templates, seen, count, seed, split)
            write_atomically(path, lambda to: _write(to, simulation, shape, threads, progress))
            write_atomically(path.with_suffix(".json"), lambda to: _write_text(to, what))
        dataset = VolumeDataset(
            f"{name}/{split}",
            tuple(structures),
            path,
            seen.box,
            np.arange(count, dtype=np.int64) % len(structures),
            numbered(split, count),
            resident=4 * int(np.prod(shape)) <= memory * 2**30,
        )
        _ = dataset.volumes  # a damaged file is told now, not in the middle of a run
        return dataset

    return Splits(part("train", train), part("test", test))


def _preset(
    name: str,
    root: Path | None,
    seen: Imaging,
    train: int,
    test: int,
    seed: int,
    cache: str | None,
    threads: int | None,
    memory: float,
    progress: Observer,
) -> Splits:
    structures = {
        id_: structure
        for id_, structure in _structures(root, name).items()
        if id_ not in LEFT_OUT and not id_.startswith(IN_SITU)
    }
    if len(structures) != CLASSES:
        raise DataError(
            f"Expected {CLASSES} structures for {name}, beside {', '.join(LEFT_OUT)} and "
            f"{IN_SITU}*, which it leaves out, but got {len(structures)} in {root}. For structures "
            "of your own, take the data set cryoet-simulated."
        )
    return simulated(
        name,
        structures,
        seen,
        train=train,
        test=test,
        seed=seed,
        cache=cache,
        threads=threads,
        memory=memory,
        progress=progress,
    )


def _structures(root: Path | None, name: str) -> dict[str, Structure]:
    folder = needed_root(root, name, WHERE)
    if (folder / "cryoet").is_dir():
        folder = folder / "cryoet"
    found: dict[str, Structure] = {}
    if any((folder / file).is_file() for file in ("structures.npz", "maps.npz")):
        found |= read_library(folder)
    for path in sorted(folder.iterdir()):
        if Path(path.name.removesuffix(".gz")).suffix.lower() in ATOMS + MAPS:
            structure = read_structure(path)
            found[structure.id] = structure
    if not found:
        raise DataError(f"Expected structures in {folder} ({WHERE}) but there are none.")
    return found


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

    def keep(i: int, volume: Volume) -> None:
        out[i] = volume

    simulation.run(keep, threads=threads, progress=progress)
    out.flush()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _opened(path: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    try:
        volumes: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
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


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "upslope"
