"""Simulated subtomograms as data sets: the cache, the labels, structures from files."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope import datasets
from upslope.errors import ConfigError, DataError

SMALL = {"box": 16, "voxel": 20.0, "resolution": 40.0}


@pytest.fixture
def library(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for i in range(3):
        n = 40 + 10 * i
        arrays[f"m{i}_xyz"] = (rng.normal(size=(n, 3)) * [20 + 8 * i, 20, 20]).astype(np.float32)
        arrays[f"m{i}_z"] = np.full(n, 6, dtype=np.uint8)
    folder = tmp_path / "cryoet"
    folder.mkdir()
    np.savez(folder / "structures.npz", **arrays)
    blob = np.exp(-(np.indices((12, 12, 12)) - 5.5).__pow__(2).sum(axis=0) / 6)
    np.savez(folder / "maps.npz", blob=blob.astype(np.float16), blob_voxel_A=np.float32(20))
    return tmp_path


def test_a_map_without_its_voxel_size_is_refused(library):
    """It was left out, and its class with it."""
    path = library / "cryoet/maps.npz"
    np.savez(path, **np.load(path), other=np.ones((12, 12, 12), np.float16))
    with pytest.raises(DataError, match="other is no structure and has no other_voxel_A"):
        datasets.load("cryoet-simulated", library, **SMALL)


def test_made_once_and_the_same_again(library, tmp_path):
    seen = []
    options = {"train": 20, "test": 8, "cache": str(tmp_path / "kept"), "snr": 0.5, **SMALL}
    splits = datasets.load("cryoet-simulated", library, progress=seen.append, **options)
    assert [p.done for p in seen if p.phase == "simulate"] == [0, 20, 0, 8]
    assert splits.pool.classes == ("m0", "m1", "m2", "blob")
    assert splits.pool.input_shape == (1, 16, 16, 16)
    assert splits.pool.targets(range(6)).tolist() == [0, 1, 2, 3, 0, 1]
    x = splits.pool.inputs(range(20))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean(dim=(1, 2, 3, 4)), torch.zeros(20), atol=2e-3, rtol=0)
    torch.testing.assert_close(x.var(dim=(1, 2, 3, 4)), torch.ones(20), atol=2e-3, rtol=0)
    assert datasets.statistics(splits.pool) == ((), ())
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 4
    recipe = json.loads(files[0].with_suffix(".json").read_text())
    assert recipe["imaging"]["snr"] == 0.5
    assert recipe["structures"].keys() == {"m0", "m1", "m2", "blob"}

    sent = pickle.dumps(splits.pool)  # to worker processes
    assert len(sent) < 5_000
    assert torch.equal(pickle.loads(sent).inputs(range(20)), x)

    seen.clear()
    again = datasets.load("cryoet-simulated", library, progress=seen.append, **options)
    assert not seen
    assert torch.equal(again.pool.inputs([3, 7]), x[[3, 7]])
    other = datasets.load("cryoet-simulated", library, **{**options, "cache": str(tmp_path / "b")})
    assert torch.equal(other.pool.inputs(range(20)), x)
    reseeded = datasets.load("cryoet-simulated", library, **options, seed=1)
    assert not torch.equal(reseeded.pool.inputs([0]), x[:1])
    torn = next(p for p in files if p.suffix == ".npy")
    torn.write_bytes(torn.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged: its volumes are simulated again"):
        whole = datasets.load("cryoet-simulated", library, **options)
    assert torch.equal(whole.pool.inputs(range(20)), x)


def test_chosen_classes(library, tmp_path):
    options = {"train": 6, "test": 2, "cache": str(tmp_path / "kept"), **SMALL}
    splits = datasets.load("cryoet-simulated", library, classes="m2, blob", **options)
    assert splits.pool.classes == ("m2", "blob")
    assert len(datasets.load("cryoet-simulated", library, limit=4, **options).pool) == 4
    with pytest.raises(DataError, match=r"among the 4 structures .* but got m7"):
        datasets.load("cryoet-simulated", library, classes="m7,m1", **options)
    with pytest.raises(DataError, match="two structures to tell apart"):
        datasets.load("cryoet-simulated", library, classes="m1", **options)
    with pytest.raises(ConfigError, match="`box`"):
        datasets.load("cryoet-simulated", library, box=4)


def test_preset_needs_its_structures(library):
    with pytest.raises(DataError, match=r"50 structures for 50c-clean.* got 4"):
        datasets.load("50c-clean", library)
    with pytest.raises(DataError, match=r"structures in .* but there are none"):
        datasets.load("50c-clean", _empty(library))


def _empty(library):
    (library / "empty").mkdir()
    return library / "empty"


def test_structures_in_the_fields_own_files(tmp_path):
    """One molecule as PDB, mmCIF and MRC, written by gemmi and mrcfile, makes one picture."""
    gemmi, mrcfile = pytest.importorskip("gemmi"), pytest.importorskip("mrcfile")
    from upslope.cryoet import Atoms, Map, read_structure

    rng = np.random.default_rng(1)
    entry = gemmi.Structure()
    entry.name = "TOY"
    chain = gemmi.Chain("A")
    places = np.round(rng.normal(size=(30, 3)) * 30, 3)
    for i, place in enumerate(places):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(i + 1))
        for name, element, offset in (("CA", "C", 0.0), ("H", "H", 1.0)):
            atom = gemmi.Atom()
            atom.name, atom.element = name, gemmi.Element(element)
            atom.pos = gemmi.Position(*(place + offset))
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    entry.add_model(model)
    entry.write_pdb(str(tmp_path / "toy.pdb"))
    entry.make_mmcif_document().write_file(str(tmp_path / "toy.cif"))
    for file in ("toy.pdb", "toy.cif"):
        atoms = read_structure(tmp_path / file)
        assert isinstance(atoms, Atoms)
        assert atoms.id == "toy"
        assert len(atoms.xyz) == 30  # hydrogen is left out
        assert (atoms.weights == 6).all()
        np.testing.assert_allclose(atoms.xyz, places - places.mean(axis=0), atol=2e-3)
    density = rng.normal(size=(8, 9, 10)).astype(np.float32)
    with mrcfile.new(tmp_path / "map.mrc") as out:
        out.set_data(density)
        out.voxel_size = 7.5
    got = read_structure(tmp_path / "map.mrc")
    assert isinstance(got, Map)
    assert got.voxel == pytest.approx(7.5)
    assert np.array_equal(got.density, density)
    (tmp_path / "bad.pdb").write_text("REMARK nothing\n")
    with pytest.raises(DataError, match=r"atoms in .*bad\.pdb"):
        read_structure(tmp_path / "bad.pdb")
    (tmp_path / "toy.xyz").write_text("")
    with pytest.raises(DataError, match=r"one of the kinds .*toy\.xyz"):
        read_structure(tmp_path / "toy.xyz")


@pytest.mark.data
def test_presets_from_the_real_structures(tmp_path):
    root = os.environ.get("UPSLOPE_DATA", "")
    if not (Path(root) / "cryoet").is_dir():
        pytest.skip("UPSLOPE_DATA names no folder with cryoet")
    options = {"train": 100, "test": 50, "cache": str(tmp_path)}
    noisy, clean = (datasets.load(name, root, **options) for name in ("50c-snr005", "50c-clean"))
    assert len(noisy.pool.classes) == 50
    assert torch.bincount(noisy.pool.targets(range(100))).tolist() == [2] * 50
    correlation = (noisy.pool.inputs(range(100)) * clean.pool.inputs(range(100))).mean()
    assert correlation.item() == pytest.approx((0.05 / 1.05) ** 0.5, abs=0.01)


def save_map(path, *sides):
    mrcfile = pytest.importorskip("mrcfile")
    values = np.random.default_rng(0).random(sides).astype(np.float32)
    with mrcfile.new(path, overwrite=True) as out:
        out.set_data(values)
        out.voxel_size = 20


def test_two_structures_of_one_name_are_refused(tmp_path):
    for name in ("a.map", "a.mrc", "b.mrc"):
        save_map(tmp_path / name, 12, 12, 12)
    with pytest.raises(DataError, match=r"'a' is there again, in a\.mrc: each is a class"):
        datasets.load("cryoet-simulated", tmp_path)


def test_a_hidden_file_is_no_structure_and_a_stack_no_map(tmp_path):
    for name in ("a.mrc", "b.mrc"):
        save_map(tmp_path / name, 12, 12, 12)
    (tmp_path / "._a.mrc").write_bytes(b"\0\5\x16\7")
    options = {**SMALL, "cache": str(tmp_path / "cache"), "train": 4, "test": 2}
    assert datasets.load("cryoet-simulated", tmp_path, **options).pool.classes == ("a", "b")
    save_map(tmp_path / "c.mrc", 2, 12, 12, 12)
    with pytest.raises(DataError, match=r"one density map in .*c\.mrc but got a stack of 2"):
        datasets.load("cryoet-simulated", tmp_path, **options)
