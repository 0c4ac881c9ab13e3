"""Structures to image: atoms of a PDB or mmCIF entry, or a density map of an MRC file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.cryoet.mrc import read_volume
from upslope.errors import DataError
from upslope.extras import import_package
from upslope.reading import (
    check_room,
    compression_of,
    open_unpacked,
    read_npz,
    read_within_limit,
    reporting_damage,
    temporary_folder,
    write_temporary,
)

ATOMS = (".pdb", ".ent", ".cif", ".mmcif")
MAPS = (".mrc", ".map", ".mrcs", ".rec")

_BESIDE = ("_z", "_voxel_A")
"""Ends of the names of arrays that belong to another one."""

Volume = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms of a molecule. xyz: (n, 3), in angstrom, centred. weights: (n,), atomic numbers.

    id: of the entry.
    """

    id: str
    xyz: NDArray[np.float64]
    weights: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Map:
    """A density map. density: (d, h, w) in z, y, x; voxel: its edge in angstrom.

    id: of the entry.
    """

    id: str
    density: Volume
    voxel: float


Structure = Atoms | Map


def read_structure(path: Path | str) -> Structure:
    """Return a structure from a file: .pdb, .ent, .cif (gzipped or not) or .mrc, .map, .rec.

    Of a PDB or mmCIF entry, the first biological assembly is built where the file gives one;
    hydrogen and water are left out.

    path: the file.

    Raises:
        DataError: the file cannot be read, holds no atom, or is of another kind.
        ConfigError: gemmi or mrcfile is not installed.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    if not path.is_file():
        raise DataError(f"Expected a structure in {path} but there is no such file.")
    if suffix in MAPS:
        volume = read_volume(path)
        if volume.values.ndim != 3:
            raise DataError(
                f"Expected one density map in {path} but got a stack of {len(volume.values)}. Save "
                "each as a file of its own."
            )
        return Map(Path(name).stem, volume.values, volume.voxel)
    if suffix not in ATOMS:
        raise DataError(
            f"Expected a structure of one of the kinds {', '.join(ATOMS + MAPS)} but got {path}."
        )
    return _read_atoms(path, Path(name).stem)


def read_library(folder: Path) -> dict[str, Structure]:
    """Return the structures of structures.npz and maps.npz in `folder`, in their order there.

    structures.npz holds `<id>_xyz` (n, 3) and `<id>_z` (n,); maps.npz holds `<id>` (d, h, w) and
    `<id>_voxel_A`.

    Raises:
        DataError: neither file is there, or one is damaged or of another layout.
    """
    structures: dict[str, Structure] = {}
    for file in ("structures.npz", "maps.npz"):
        path = folder / file
        if not path.is_file():
            continue
        wanted_arrays = f"structures (<id>_xyz, <id>_z) or maps (<id>, <id>_voxel_A) in {path}"
        with reporting_damage(wanted_arrays, "Get it again."):
            structures |= _from_arrays(read_npz(path))
    if not structures:
        raise DataError(f"Expected structures.npz or maps.npz in {folder} but there is neither.")
    return structures


def _from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Structure]:
    structures: dict[str, Structure] = {}
    for key, values in arrays.items():
        if key.endswith("_xyz"):
            id_ = key.removesuffix("_xyz")
            structures[id_] = _centre(id_, values, arrays[f"{id_}_z"])
        elif f"{key}_voxel_A" in arrays:
            voxel = float(arrays[f"{key}_voxel_A"])
            if values.ndim != 3:
                raise ValueError(f"{key} is of shape {values.shape}, not one density (d, h, w)")
            structures[key] = Map(key, values.astype(np.float32), voxel)
        elif not key.endswith(_BESIDE):
            raise ValueError(f"{key} is no structure and has no {key}_voxel_A")
    return structures


def _centre(id_: str, xyz: NDArray[np.generic], weights: NDArray[np.generic]) -> Atoms:
    places, mass = xyz.astype(np.float64), weights.astype(np.float64)
    if not np.isfinite(places).all() or not len(places) or not mass.sum() > 0:
        raise ValueError(f"{id_} has no atoms, or places that are not finite")
    return Atoms(id_, places - (mass[:, None] * places).sum(axis=0) / mass.sum(), mass)


def _read_atoms(path: Path, id_: str) -> Atoms:
    gemmi = import_package("gemmi", "to read this file", "cryoet")
    with reporting_damage(f"a PDB or mmCIF entry with atoms in {path}", "Get the file again."):
        entry = _entry(gemmi, path)
        entry.setup_entities()
        if entry.assemblies:
            entry.transform_to_assembly(
                entry.assemblies[0].name, gemmi.HowToNameCopiedChain.AddNumber
            )
        entry.remove_hydrogens()
        entry.remove_waters()
        atoms = [
            (*site.atom.pos.tolist(), site.atom.element.atomic_number * site.atom.occ)
            for site in entry[0].all()
        ]
        rows = np.array(atoms, dtype=np.float64).reshape(-1, 4)
        return _centre(id_, rows[:, :3], rows[:, 3])


def _entry(gemmi: ModuleType, path: Path) -> Any:
    """Return the entry of a file, unpacked here where it is compressed: gemmi sets no bound to
    that.
    """
    with open_unpacked(path) as file, temporary_folder() as folder:
        if compression_of(path) is None:
            check_room(path.stat().st_size, path)
            return gemmi.read_structure(str(path))
        plain = folder / path.name.removesuffix(".gz")
        write_temporary(plain, read_within_limit(file, path))
        return gemmi.read_structure(str(plain))
