"""Simulated subtomograms: the paper's two sets, and others of the user's own structures.

Volumes are simulated once, in threads, and kept in a cache; docs/cryoet.md says how they come
about, and what the simulation leaves out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from upslope.cryoet import imaging as optics
from upslope.cryoet.imaging import Imaging
from upslope.cryoet.structures import ATOMS, MAPS, Structure, read_library, read_structure
from upslope.datasets.encoded import Memory
from upslope.datasets.name_lists import OptionalNames, split_names
from upslope.datasets.paths import needed_root, visible
from upslope.datasets.splits import Splits
from upslope.datasets.volumes import simulate_splits
from upslope.errors import DataError
from upslope.progress import Observer, no_progress

WHERE = "PDB, mmCIF or MRC files, or structures.npz and maps.npz"
LEFT_OUT = ("1s3x", "3gl1", "3qm1", "4gxy", "3hfm", "1f2n")
"""Of the 56 complexes collected for the presets, the five below 60 kDa, and a capsid wider than
the box. The in-situ averages (chlamy_*), which have noise and a wedge of their own, are no part."""
IN_SITU = "chlamy_"
CLASSES = 50
DEFAULT_IMAGING = Imaging(defocus_low=2.0, defocus_high=5.0)
"""Both presets: the same molecules at the same places under the same defocus, but for the noise."""
Train = Annotated[int, Field(ge=1, description="subtomograms in the pool, the classes in turn")]
Test = Annotated[int, Field(ge=1, description="subtomograms to test on")]
Seed = Annotated[int, Field(ge=0, description="of the simulation; not that of the experiment")]
Cache = Annotated[
    str | None, Field(description="folder to keep volumes in; ~/.cache/upslope if not given")
]
Threads = Annotated[
    int | None, Field(ge=1, description="to simulate in; one per core if not given")
]


def clean_50(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    train: Train = 24_000,
    test: Test = 1_000,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = None,
    memory: Memory = 4.0,
) -> Splits:
    """50c-clean of the paper, simulated anew: 50 complexes, 32x32x32, noise free."""
    return _preset(
        "50c-clean", root, DEFAULT_IMAGING, train, test, seed, cache, threads, memory, progress
    )


def noisy_50(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    train: Train = 24_000,
    test: Test = 1_000,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = None,
    memory: Memory = 4.0,
) -> Splits:
    """50c-snr005 of the paper, simulated anew: 50 complexes, 32x32x32, at an SNR of 0.05."""
    imaging = replace(DEFAULT_IMAGING, snr=0.05)
    return _preset("50c-snr005", root, imaging, train, test, seed, cache, threads, memory, progress)


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    classes: Annotated[
        OptionalNames,
        Field(description="ids, a list or with commas between; all of the folder if not given"),
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
        ids = split_names(classes, "data.classes")
        if absent := [id_ for id_ in ids if id_ not in structures]:
            raise DataError(
                f"Expected `data.classes` among the {len(structures)} structures of {root}, "
                f"{', '.join(list(structures)[:8])}, ..., but got {', '.join(absent)}."
            )
        structures = {id_: structures[id_] for id_ in ids}
    imaging = Imaging(
        box=box,
        voxel=voxel,
        resolution=resolution,
        shift=shift,
        tilt=tilt,
        defocus_low=defocus_low,
        defocus_high=defocus_high,
        snr=snr,
    )
    return simulate_splits(
        "cryoet-simulated",
        structures,
        imaging,
        train=train,
        test=test,
        seed=seed,
        cache=cache,
        threads=threads,
        memory=memory,
        progress=progress,
    )


def _preset(
    name: str,
    root: Path | None,
    imaging: Imaging,
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
    return simulate_splits(
        name,
        structures,
        imaging,
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
    structures: dict[str, Structure] = {}
    if any((folder / file).is_file() for file in ("structures.npz", "maps.npz")):
        structures |= read_library(folder)
    for path in visible(folder.iterdir()):
        if Path(path.name.removesuffix(".gz")).suffix.lower() in ATOMS + MAPS:
            structure = read_structure(path)
            if structure.id in structures:
                raise DataError(
                    f"Expected a structure of each name once in {folder} but {structure.id!r} is "
                    f"there again, in {path.name}: each is a class. Rename or remove one."
                )
            structures[structure.id] = structure
    if not structures:
        raise DataError(f"Expected structures in {folder} ({WHERE}) but there are none.")
    return structures
