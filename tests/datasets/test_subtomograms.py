"""Subtomograms of tomograms and of MRC stacks, written with mrcfile."""

import gzip
import struct

import numpy as np
import pytest

from upslope import datasets
from upslope.cryoet.mrc import map_volume, read_volume, write_volume
from upslope.errors import DataError

mrcfile = pytest.importorskip("mrcfile")


def standard(volume):
    return (volume - volume.mean()) / volume.std()


def write(path, data, voxel=10.0):
    with mrcfile.new(path, overwrite=True) as out:
        out.set_data(data)
        out.voxel_size = voxel


@pytest.fixture
def stack(tmp_path):
    data = np.random.default_rng(0).normal(size=(10, 8, 8, 8)).astype(np.float32)
    write(tmp_path / "stack.mrc", data)
    rows = "\n".join(f"{i + 1:06d}@stack.mrc {'AB'[i % 2] if i < 8 else 'None'}" for i in range(10))
    (tmp_path / "p.star").write_text(f"data_\nloop_\n_rlnImageName\n_kind\n{rows}\n")
    return tmp_path, data


def test_stack(stack):
    root, data = stack
    splits = datasets.load("subtomograms", root, label="kind", test_share=0.25)
    assert splits.pool.classes == ("A", "B")
    assert (len(splits.pool), len(splits.test)) == (8, 2)
    assert sorted(splits.test.targets([0, 1]).tolist()) == [0, 1]
    for part in (splits.pool, splits.test):
        for i, id_ in enumerate(part.ids):
            expected = standard(data[int(id_[:6]) - 1])
            np.testing.assert_allclose(part.inputs([i])[0, 0], expected, atol=1e-5)
    with pytest.raises(DataError, match="label for '000009@stack"):
        splits.pool.targets([splits.pool.ids.index("000009@stack.mrc")])
    dark = datasets.load("subtomograms", root / "p.star", label="kind", invert=True)
    i = dark.pool.ids.index("000010@stack.mrc")
    np.testing.assert_allclose(dark.pool.inputs([i])[0, 0], -standard(data[9]), atol=1e-5)


def test_places_in_a_tomogram(tmp_path):
    data = np.random.default_rng(1).normal(size=(30, 40, 50)).astype(np.float32)  # z, y, x
    write(tmp_path / "tomo.mrc", data, voxel=5.0)
    (tmp_path / "p.star").write_text(
        "data_particles\nloop_\n_rlnTomoName\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnCoordinateZ\n"
        "_rlnOriginXAngst\n_rlnClassNumber\n"
        "tomo.mrc 25 20 15 0 1\ntomo.mrc 31.4 20 15 10 1\ntomo.mrc 2 20 15 0 2\n"
        "tomo.mrc 30 30 20 0 2\n"
    )
    splits = datasets.load("subtomograms", tmp_path, box=8, test_share=0.5)
    assert splits.notes == (
        "1 of 4 particles of p.star have origins (rlnOriginXAngst, ...): they are taken off the "
        "coordinates, as angstrom.",
        "1 of 4 boxes of 8 voxels reach beyond their tomogram and are filled with the mean of the "
        "rest, first that of 'tomo.mrc@2,20,15'.",
    )
    everything = splits.pool.dataset
    np.testing.assert_allclose(
        everything.inputs([0])[0, 0], standard(data[11:19, 16:24, 21:29]), atol=1e-5
    )
    # 31.4 voxels less 10 angstrom, which are 2 voxels: the voxel nearest is 29.
    np.testing.assert_allclose(
        everything.inputs([1])[0, 0], standard(data[11:19, 16:24, 25:33]), atol=1e-5
    )
    # At the border: two of eight columns lie outside and take the mean of the others.
    part = data[11:19, 16:24, 0:6]
    padded = np.concatenate([np.full((8, 8, 2), part.mean()), part], axis=2)
    np.testing.assert_allclose(everything.inputs([2])[0, 0], standard(padded), atol=1e-5)
    with pytest.raises(DataError, match=r"`data.box`, the voxels to cut out"):
        datasets.load("subtomograms", tmp_path)
    text = (tmp_path / "p.star").read_text().replace("30 30 20", "300 30 20")
    (tmp_path / "p.star").write_text(text)
    far = datasets.load("subtomograms", tmp_path, box=8, test_share=0.5).pool.dataset
    with pytest.raises(DataError, match=r"\(50, 40, 30\), but only 0% .* 300\.0, 30\.0, 20\.0"):
        far.inputs([3])


def test_files_that_cannot_be_used(stack):
    root, data = stack
    path = root / "stack.mrc"

    def load():
        return datasets.load("subtomograms", root, label="kind")

    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"an MRC file in .*stack\.mrc"):
        load()
    path.write_bytes(b"not an mrc file")
    with pytest.raises(DataError, match=r"an MRC file in .*stack\.mrc"):
        load()
    with pytest.warns(RuntimeWarning, match="NaN"):
        write(path, np.where(data == data[3, 2, 1, 0], np.nan, data).astype(np.float32))
    with pytest.raises(DataError, match=r"000004@stack\.mrc of .* 1 of 512 voxels are NaN"):
        load().pool.dataset.inputs([3])
    with pytest.raises(DataError, match="1 of 5120 voxels are NaN"):
        read_volume(path)
    with pytest.warns(UserWarning, match=r"Left out 1 of 10 particles .*000004@stack\.mrc"):
        kept = datasets.load("subtomograms", root, label="kind", on_error="skip")
    assert "000004@stack.mrc" not in (*kept.pool.ids, *kept.test.ids)
    assert len(kept.pool) + len(kept.test) == 9
    assert kept.pool.inputs(range(len(kept.pool))).isfinite().all()
    write(path, data, voxel=0.0)
    with pytest.raises(DataError, match=r"voxel size in the header .* Give `data.voxel`"):
        load()
    assert read_volume(path, voxel=3.0).voxel == 3.0
    write(path, data, voxel=(10.0, 10.0, 12.0))
    with pytest.raises(DataError, match=r"one edge length in .*\[10\.0, 10\.0, 12\.0\]"):
        load()
    write(path, data[:5])
    with pytest.raises(DataError, match=r"volume 10 of a stack .* a stack of 5 volumes"):
        load().pool.dataset.inputs([9])
    write(path, np.ones_like(data))
    with pytest.raises(DataError, match="to vary but it is constant"):
        load().pool.inputs([0])
    (root / "q.star").write_text("data_\n")
    with pytest.raises(DataError, match=r"one \.star or \.csv file .*p\.star.*q\.star"):
        load()


def test_one_class_is_nothing_to_learn(stack):
    root, _ = stack
    (root / "p.star").write_text("data_\nloop_\n_rlnImageName\n000001@stack.mrc\n")
    with pytest.raises(DataError, match="two classes"):
        datasets.load("subtomograms", root)


def test_written_volumes_are_read_back(tmp_path):
    data = np.random.default_rng(2).normal(size=(3, 4, 5, 6)).astype(np.float32)
    write_volume(tmp_path / "s.mrc", data, 7.5)
    write_volume(tmp_path / "v.mrc", data[0], 7.5)
    assert np.array_equal(read_volume(tmp_path / "s.mrc").values, data)
    one = read_volume(tmp_path / "v.mrc")
    assert np.array_equal(one.values, data[0])
    assert one.voxel == pytest.approx(7.5)


def test_a_tomogram_is_mapped_and_only_its_boxes_are_read(tmp_path):
    data = np.random.default_rng(3).integers(-99, 99, size=(40, 300, 300)).astype(np.int16)
    write(tmp_path / "t.mrc", data)
    (tmp_path / "t.mrc.gz").write_bytes(gzip.compress((tmp_path / "t.mrc").read_bytes(), 1))
    mapped = map_volume(tmp_path / "t.mrc")
    assert isinstance(mapped.values, np.memmap)
    assert mapped.values.dtype == np.int16
    assert np.array_equal(mapped.values[3:9, 5, 7:9], data[3:9, 5, 7:9])
    assert np.array_equal(map_volume(tmp_path / "t.mrc.gz").values, data)
    rows = "".join(
        f"{file} {x} 100 20 {x % 2}\n" for file in ("t.mrc", "t.mrc.gz") for x in (40, 51)
    )
    (tmp_path / "p.star").write_text(
        "data_\nloop_\n_rlnTomoName\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnCoordinateZ\n"
        f"_rlnClassNumber\n{rows}"
    )
    everything = datasets.load("subtomograms", tmp_path, box=8, test_share=0.5).pool.dataset
    plain, packed = everything.inputs([0, 1]), everything.inputs([2, 3])
    assert plain.equal(packed)
    expected = standard(data[16:24, 96:104, 36:44].astype(np.float32))
    np.testing.assert_allclose(plain[0, 0], expected, atol=1e-5)


def test_missing_labels_encodings_and_odd_files_are_told(stack):
    root, _ = stack
    whole = (root / "stack.mrc").read_bytes()
    (root / "stack.mrc").write_bytes(whole + b"\0" * 9)
    kinds = ["Käfer", "Biene", "NA", "n/a", "?", "null", "nan", "Käfer", "Biene", "None"]
    rows = "\n".join(f"{i:06d}@stack.mrc,{kind}" for i, kind in enumerate(kinds, start=1))
    (root / "p.star").unlink()
    (root / "p.csv").write_bytes(f"image,label\n{rows}\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"Set `data.encoding`"):
        datasets.load("subtomograms", root)
    splits = datasets.load("subtomograms", root, encoding="cp1252", test_share=0.5)
    assert splits.pool.classes == ("Biene", "Käfer")
    assert (len(splits.pool), len(splits.test)) == (8, 2)
    unlabelled, odd = splits.notes
    assert unlabelled.startswith("6 of 10 particles are unlabelled: their label is '?' (1), 'NA'")
    assert odd == (
        "stack.mrc is 9 bytes longer than its header says; the end is not read (1 of 1 files of "
        "p.csv)."
    )
    splits = datasets.load("subtomograms", root, encoding="cp1252", missing_labels=["NA"])
    assert splits.pool.classes == ("?", "Biene", "Käfer", "None", "n/a", "nan", "null")


def test_coordinates_in_other_pixels_are_told(tmp_path):
    write(tmp_path / "t.mrc", np.random.default_rng(1).normal(size=(30, 40, 50)).astype("f4"), 10.8)
    rows = "".join(f"t.mrc {20 + i} 20 15 {i % 2 + 1}\n" for i in range(4))
    table = (
        "data_optics\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n1 {}\n\n"
        "data_particles\nloop_\n_rlnTomoName\n_rlnCoordinateX\n_rlnCoordinateY\n"
        f"_rlnCoordinateZ\n_rlnClassNumber\n{rows}"
    )
    for pixel, told in ((1.35, 1), (10.8, 0)):
        (tmp_path / "p.star").write_text(table.format(pixel))
        notes = datasets.load("subtomograms", tmp_path, box=8, test_share=0.5).notes
        assert len(notes) == told
    (tmp_path / "p.star").write_text(table.format(1.35))
    (note,) = datasets.load("subtomograms", tmp_path, box=8, test_share=0.5).notes
    assert note.startswith(
        "p.star states pixels of 1.35 angstrom (rlnMicrographPixelSize) for 4 particles, and t.mrc "
        "has voxels of 10.8 (1 of 1 tomograms)."
    )


def test_pixels_are_those_of_each_optics_group(tmp_path):
    volume = np.random.default_rng(1).normal(size=(30, 40, 50)).astype("f4")
    write(tmp_path / "t.mrc", volume, 10.8)
    write(tmp_path / "u.mrc", volume, 5.4)
    rows = "".join(
        f"{file}.mrc {20 + i} 20 15 {i % 2 + 1} {group}\n"
        for file, group in (("t", 2), ("u", 1))
        for i in range(4)
    )
    table = (
        "data_particles\nloop_\n_rlnTomoName\n_rlnCoordinateX\n_rlnCoordinateY\n"
        f"_rlnCoordinateZ\n_rlnClassNumber\n_rlnOpticsGroup\n{rows}\n"
        "data_optics\nloop_\n_rlnTomoTiltSeriesPixelSize\n_rlnOpticsGroup\n5.4 1\n{} 2\n"
    )
    (tmp_path / "p.star").write_text(table.replace("{}", "10.8"))
    assert datasets.load("subtomograms", tmp_path, box=8, test_share=0.5).notes == ()
    (tmp_path / "p.star").write_text(table.replace("{}", "2.7"))
    (note,) = datasets.load("subtomograms", tmp_path, box=8, test_share=0.5).notes
    assert note.startswith(
        "p.star states pixels of 2.7 angstrom (rlnTomoTiltSeriesPixelSize) for 4 particles, and "
        "t.mrc has voxels of 10.8 (1 of 2 tomograms)."
    )


def test_starts_of_a_tomogram_are_told_and_not_applied(tmp_path):
    volume = np.random.default_rng(1).normal(size=(30, 40, 50)).astype("f4")
    write(tmp_path / "t.mrc", volume, 10.0)
    rows = "".join(f"t.mrc,{20 + i},20,15,{i % 2}\n" for i in range(4))
    (tmp_path / "p.csv").write_text(f"tomogram,x,y,z,label\n{rows}")
    plain = datasets.load("subtomograms", tmp_path / "p.csv", box=8, test_share=0.5)
    assert plain.notes == ()
    content = bytearray((tmp_path / "t.mrc").read_bytes())
    for at, values, told in (
        (16, struct.pack("<3i", 0, 0, 7), "0, 0, 70"),  # NXSTART, NYSTART, NZSTART
        (196, struct.pack("<3f", -5, 0, 2.5), "-5, 0, 2.5"),  # ORIGIN
    ):
        content[at : at + 12] = values
        (tmp_path / "u.mrc").write_bytes(content)  # of another name: files are kept open
        (tmp_path / "q.csv").write_text(f"tomogram,x,y,z,label\n{rows.replace('t.mrc', 'u.mrc')}")
        moved = datasets.load("subtomograms", tmp_path / "q.csv", box=8, test_share=0.5)
        (note,) = moved.notes
        assert f"u.mrc begins at x, y, z = {told} angstrom by its header" in note
        x = int(moved.pool.ids[0].split("@")[1].split(",")[0])
        box = volume[11:19, 16:24, x - 4 : x + 4]
        cut = moved.pool.inputs([0])[0, 0].numpy()
        np.testing.assert_allclose(cut, (box - box.mean()) / box.std(), atol=1e-5)


@pytest.mark.parametrize(("x", "first"), [("20.5", 17), ("20.49", 16), ("19.5", 16)])
def test_the_nearest_voxel_of_a_half_is_the_one_above(tmp_path, x, first):
    volume = np.random.default_rng(1).normal(size=(30, 40, 50)).astype("f4")
    write(tmp_path / "t.mrc", volume, 10.0)
    rows = f"t.mrc,{x},20,15,a\nt.mrc,{x},21,15,b\nt.mrc,{x},22,15,a\nt.mrc,{x},23,15,b\n"
    (tmp_path / "p.csv").write_text(f"tomogram,x,y,z,label\n{rows}")
    splits = datasets.load("subtomograms", tmp_path / "p.csv", box=8, test_share=0.5)
    y = int(float(splits.pool.ids[0].split(",")[1]))
    box = volume[11:19, y - 4 : y + 4, first : first + 8]
    expected = (box - box.mean()) / box.std()
    np.testing.assert_allclose(splits.pool.inputs([0])[0, 0].numpy(), expected, atol=1e-5)


def test_a_file_that_has_changed_is_mapped_anew(stack):
    """A stack written again under its name gave the volumes that it had before."""
    root, data = stack
    before = datasets.load("subtomograms", root, label="kind")
    first = before.pool.inputs([0])
    write(root / "new.mrc", data[::-1].copy())
    (root / "new.mrc").replace(root / "stack.mrc")
    after = datasets.load("subtomograms", root, label="kind")
    assert not bool((after.pool.inputs([0]) == first).all())


def test_one_class_number_in_two_spellings_is_refused(stack):
    root, _ = stack
    rows = "\n".join(f"{i + 1:06d}@stack.mrc {('1', '2', '1.0')[i % 3]}" for i in range(10))
    (root / "p.star").write_text(f"data_\nloop_\n_rlnImageName\n_rlnClassNumber\n{rows}\n")
    with pytest.raises(DataError, match=r"one spelling of each number .* got '1' and '1\.0'"):
        datasets.load("subtomograms", root)
