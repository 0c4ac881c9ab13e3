"""MRC files whose headers depart from MRC2014, written with mrcfile and then changed by hand."""

import bz2
import gzip
import struct
import warnings

import numpy as np
import pytest

from upslope.cryoet.mrc import map_volume, read_header, read_volume
from upslope.errors import DataError

mrcfile = pytest.importorskip("mrcfile")

DATA = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


def written(path, data=DATA, voxel=10.0):
    with mrcfile.new(path, overwrite=True) as out:
        out.set_data(data)
        out.voxel_size = voxel
    return bytearray(path.read_bytes())


def put(content, at, values):
    content[at : at + len(values)] = values
    return content


@pytest.mark.parametrize(
    ("change", "oddity"),
    [
        (lambda b: put(b, 208, b"\0\0\0\0"), "has no MAP identifier"),
        (lambda b: put(b, 212, bytes((68, 32, 32, 32))), None),
        (lambda b: put(b, 212, b"\0\0\0\0"), "has the machine stamp 00 00 00 00.* little-endian"),
        (
            lambda b: put(b, 212, b"\x11\x11\0\0"),
            "has the machine stamp 11 11 00 00.* little-endian",
        ),
        (lambda b: b + b"\0" * 512, "is 512 bytes longer"),
    ],
)
def test_odd_headers_are_read_and_told(tmp_path, change, oddity):
    path = tmp_path / "v.mrc"
    path.write_bytes(change(written(path)))
    if oddity is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            volume = read_volume(path)
    else:
        with pytest.warns(UserWarning, match=rf"v\.mrc {oddity}"):
            volume = read_volume(path)
    assert np.array_equal(volume.values, DATA)
    assert volume.voxel == pytest.approx(10)


def test_big_endian_without_a_stamp(tmp_path):
    path = tmp_path / "v.mrc"
    with mrcfile.new(path) as out:
        out.set_data(DATA.astype(">f4"))
        out.voxel_size = 10.0
    content = bytearray(path.read_bytes())
    assert content[212] == 0x11
    path.write_bytes(put(content, 212, b"\0\0\0\0"))
    with pytest.warns(UserWarning, match="big-endian, which fits"):
        assert np.array_equal(read_volume(path).values, DATA)


def test_axes_in_another_order(tmp_path):
    path = tmp_path / "v.map"
    content = written(path)
    # Columns run along z, rows along x, sections along y.
    path.write_bytes(put(content, 64, struct.pack("<3i", 3, 1, 2)))
    with pytest.warns(UserWarning, match="axes in another order"):
        values = read_volume(path).values
    assert values.shape == (6, 4, 5)
    assert values[3, 1, 2] == DATA[1, 2, 3]  # z 3, y 1, x 2 lies in section 1, row 2, column 3
    path.write_bytes(put(content, 64, struct.pack("<3i", 1, 1, 2)))
    with pytest.raises(DataError, match=r"axes 1, 2 and 3 in some order but got \[1, 1, 2\]"):
        map_volume(path)


def test_unsigned_bytes(tmp_path):
    path = tmp_path / "v.mrc"
    levels = np.arange(120, dtype=np.uint8).reshape(4, 5, 6) * 2
    content = written(path, levels.view(np.int8))
    by_imod = put(bytearray(content), 152, struct.pack("<2i", 1146047817, 0))
    path.write_bytes(by_imod)
    with pytest.warns(UserWarning, match="unsigned, as its IMOD stamp says"):
        assert np.array_equal(read_volume(path).values, levels)
    path.write_bytes(put(bytearray(content), 76, struct.pack("<2f", 0, 238)))
    with pytest.warns(UserWarning, match="gives 238 as the largest"):
        assert np.array_equal(read_volume(path).values, levels)
    path.write_bytes(put(bytearray(by_imod), 152, struct.pack("<2i", 1146047817, 1)))
    assert np.array_equal(read_volume(path).values, levels.view(np.int8))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_compressed(tmp_path, pack):
    path = tmp_path / "v.mrc.gz"
    path.write_bytes(pack(bytes(written(path))))
    assert np.array_equal(read_volume(path).values, DATA)
    assert read_header(path).shape == (4, 5, 6)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="reading it failed"):
        read_volume(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "it has 1503 bytes and its header asks for 1504"),
        (lambda b: b[:1000], "it has 1000 bytes"),
        (lambda b: put(b, 0, struct.pack("<i", -6)), "columns, rows and sections"),
        (lambda b: put(b, 12, struct.pack("<i", 77)), "[Uu]nrecognised mode"),
        (lambda b: put(b, 12, struct.pack("<i", 4)), "asks for 1984"),
        (lambda b: put(b, 52, struct.pack("<3f", 90, 90, 120)), r"right angles .*120\.0\] degrees"),
        (lambda b: put(b, 52, struct.pack("<3f", 90, 80, 90)), "right angles"),
        (lambda b: put(b, 52, struct.pack("<3f", 90, float("nan"), 90)), "right angles"),
        (lambda b: put(b, 40, struct.pack("<3f", -60, -50, -40)), r"voxel size .*-10\.0"),
        (lambda b: put(b, 40, struct.pack("<3f", 0, 0, 0)), "voxel size .*data.voxel"),
        (lambda b: put(b, 40, struct.pack("<3f", 60, 50, 80)), "one edge length"),
        (lambda b: put(b, 28, struct.pack("<i", 0)), "voxel size"),
        (lambda b: put(b, 92, struct.pack("<i", 512)), "asks for"),
        (lambda b: put(b, 92, struct.pack("<i", -4)), "columns, rows and sections"),
        (lambda b: put(b, 88, struct.pack("<i", 401)), None),
    ],
)
def test_headers_that_leave_a_doubt_are_refused(tmp_path, change, message):
    path = tmp_path / "v.mrc"
    path.write_bytes(change(written(path)))
    if message is None:  # a stack of one volume of four sections
        assert read_volume(path).values.shape == (1, 4, 5, 6)
        path.write_bytes(put(bytearray(path.read_bytes()), 36, struct.pack("<i", 3)))
        message = "4 sections are no stack of volumes of 3"
    with pytest.raises(DataError, match=message):
        read_volume(path)


def test_angles_that_nobody_has_set_are_right_ones(tmp_path):
    path = tmp_path / "v.mrc"
    path.write_bytes(put(written(path), 52, struct.pack("<3f", 0, 0, 0)))
    assert np.array_equal(read_volume(path).values, DATA)


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_extended_header_is_passed_over(tmp_path, order):
    path = tmp_path / "v.mrc"
    content = written(path, DATA.astype(f"{order}f4"))
    content[92:96] = struct.pack(f"{order}i", 768)
    content[104:108] = b"SERI"
    path.write_bytes(content[:1024] + b"\x7f" * 768 + content[1024:])
    assert np.array_equal(read_volume(path).values, DATA)


def test_a_voxel_size_that_the_header_contradicts(tmp_path):
    path = tmp_path / "v.mrc"
    written(path, voxel=1.0)
    header = read_header(path, voxel=7.84)
    assert header.voxel == pytest.approx(1.0)
    assert header.oddities == (
        "has voxels of 1 angstrom by its header, not the 7.84 of `data.voxel`",
    )


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (3, r"mode is 3: complex numbers, .* Take the volume in real space\."),
        (4, r"mode is 4: complex numbers, .* Take the volume in real space\."),
        (16, r"mode is 16: three colours a voxel\. Save one number a voxel\."),
        (101, r"mode is 101: two numbers of 4 bits a byte\. .* `newstack -mode 0` does\."),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_that_are_not_read_are_told_as_what_they_are(tmp_path, mode, words, order):
    path = tmp_path / "v.mrc"
    content = written(path, DATA.astype(DATA.dtype.newbyteorder(order))) + bytes(DATA.nbytes)
    path.write_bytes(put(content, 12, struct.pack(f"{order}i", mode)))
    with pytest.raises(DataError, match=words):
        read_volume(path)


def test_an_image_is_told_as_no_volume(tmp_path):
    path = tmp_path / "v.mrc"
    path.write_bytes(written(path, DATA[0]))
    with pytest.raises(DataError, match="it is an image of 5 rows and 6 columns"):
        read_volume(path)
