"""AVIF and HEIC pictures of more than 8 bits a colour: Pillow gives 8, which is told."""

import base64
import io
import struct

import numpy as np
import pytest
from PIL import Image, features

from upslope import datasets
from upslope.avif import coded_bits
from upslope.images import read_header

TEN_BITS = base64.b85decode(
    b"0000WW^{RQVRmU|00000VRmU|ZE0pPZE0a<O+hh10002%ZDn*}000000000XXk=`10000000000aA{+700000000"
    b"0000000000004sdC7Z2$lO000310016oY;R)#0000)000310RR910RR926951JJpcdzC~0YKW&i*H00031000_kZ"
    b"f0cy000000RRADb}%tRZ)|UJ00000YH4tCZ~y=ROKEUpZvX%Q6lrsCWdHyG000002mk;82mk;85O8UDX#fBK00Rm"
    b"N3IG5A3}JRLLxCVb000006Ju{|a&BX6cmM(b0ssbp0000NX>e^}0000000001009I60)qqq002d8WMOm?015~=2)"
    b"}Ov0tS#WFA@SnN`L_J0001xJe)E?Z)lvT3(*ry^qF?ulLWXjzF&G*0tlebC449LzM;2("
)
"""A picture of 8 x 8 pixels as libavif writes it with 10 bits, by way of imagecodecs 2026.3.6."""


@pytest.fixture
def needs_avif():
    if not features.check("avif"):
        pytest.skip("Pillow was built without libavif")


def eight_bits():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 20, 90)).save(buffer, "AVIF")
    return buffer.getvalue()


def test_bits_are_those_of_the_coded_picture(needs_avif):
    assert coded_bits(TEN_BITS) == 10
    assert coded_bits(eight_bits()) == 8
    place = TEN_BITS.index(b"av1C") + 6
    twelve = TEN_BITS[:place] + bytes([TEN_BITS[place] | 0x20]) + TEN_BITS[place + 1 :]
    assert coded_bits(twelve) == 12
    assert read_header(TEN_BITS, "a").coded_bits == 10


def test_lengths_of_64_bits_and_to_the_end_are_read():
    place = TEN_BITS.index(b"meta") - 4
    size = struct.unpack_from(">I", TEN_BITS, place)[0]
    content = TEN_BITS[place + 8 : place + size]
    assert coded_bits(struct.pack(">I4sQ", 1, b"meta", size + 8) + content) == 10
    assert coded_bits(struct.pack(">I4s", 0, b"meta") + content) == 10


def test_damaged_boxes_say_nothing():
    rng = np.random.default_rng(0)
    for _ in range(300):
        content = np.frombuffer(TEN_BITS, np.uint8)[: rng.integers(0, len(TEN_BITS) + 1)].copy()
        content[rng.integers(0, max(1, len(content)), min(3, len(content)))] = rng.integers(256)
        assert coded_bits(content.tobytes()) in (8, 10, 12)


def test_pictures_of_more_than_8_bits_are_counted(needs_avif, tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.avif").write_bytes(eight_bits())
    (tmp_path / "train/a/1.avif").write_bytes(TEN_BITS)
    notes = datasets.load("folder", tmp_path, duplicates="off").notes
    assert notes == (
        "1 of 5 images have more than 8 bits for a colour (AVIF, HEIC), of which the upper 8 are "
        "read. For example 1.avif.",
    )


def test_heic_pictures_too(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="needs the extra `label`: pillow-heif")
    levels = np.linspace(0, 65535, 64 * 64 * 3).astype("<u2")
    picture = heif.from_bytes(mode="RGB;16", size=(64, 64), data=levels.tobytes())
    picture.save(tmp_path / "a.heic")
    assert read_header(tmp_path / "a.heic", "a").coded_bits > 8
    heif.from_pillow(Image.new("RGB", (64, 64))).save(tmp_path / "b.heic")
    assert read_header(tmp_path / "b.heic", "b").coded_bits == 8
