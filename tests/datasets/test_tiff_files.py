"""TIFF files of which Pillow passes a part over, or gives other levels than they hold."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from upslope.errors import DataError
from upslope.image_depth import FULL
from upslope.images import Form, decode, read_header

RNG = np.random.default_rng(0)
_SIZES = {"H": 2, "I": 4}


def page(levels, samples=1, order="<", compressed=False, description=b"", **tags):
    """A description of one page: its pixels as bytes, and its tags by number."""
    data = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    height, width = levels.shape[:2] if tags.get("t284") != 2 else levels.shape[1:]
    bits = 8 * levels.dtype.itemsize
    entries = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * samples),
        259: ("H", [8 if compressed else 1]), 262: ("H", [2 if samples > 2 else 1]),
        277: ("H", [samples]), 278: ("I", [height]),
    }  # fmt: skip
    for name, value in tags.items():
        entries[int(name[1:])] = ("H", value if isinstance(value, list) else [value])
    data = zlib.compress(data) if compressed else data
    return {"entries": entries, "data": data, "planes": samples if tags.get("t284") == 2 else 1,
            "description": description, "behind": b"", "inner": None}  # fmt: skip


def tiff(*pages, order="<"):
    """The bytes of a TIFF file of these pages, each with one strip for each of its planes."""
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4
    for one in pages:
        link, _ = _write(out, one, order, link)
    return bytes(out)


def _write(out, one, order, link):
    entries = dict(one["entries"])
    if one["inner"] is not None:
        _, at = _write(out, one["inner"], order, None)
        entries[330] = ("I", [at])
    part = len(one["data"]) // one["planes"]
    entries[273] = ("I", [len(out) + k * part for k in range(one["planes"])])
    entries[279] = ("I", [part] * one["planes"])
    out += one["data"] + one["behind"] + b"\0" * (len(one["data"] + one["behind"]) % 2)
    places = {}
    for tag, (kind, values) in entries.items():
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:
            places[tag], out[len(out) :] = len(out), content + b"\0" * (len(content) % 2)
    text = one["description"] + b"\0"
    text_at, out[len(out) :] = len(out), text + b"\0" * (len(text) % 2)
    at = len(out)
    if link is not None:
        out[link : link + 4] = struct.pack(order + "I", at)
    rows = {tag: (3 if kind == "H" else 4, values, kind) for tag, (kind, values) in entries.items()}
    out += struct.pack(order + "H", len(rows) + 1)
    for tag in sorted({*rows, 270}):
        if tag == 270:
            padded = struct.pack(order + "I", text_at)
            out += struct.pack(order + "HHI", 270, 2, len(text)) + padded
            continue
        number, values, kind = rows[tag]
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        padded = struct.pack(order + "I", places[tag]) if tag in places else content.ljust(4, b"\0")
        out += struct.pack(order + "HHI", tag, number, len(values)) + padded
    out += struct.pack(order + "I", 0)
    return len(out) - 4, at


def grey(top=256, kind=np.uint8, size=(8, 6)):
    return RNG.integers(0, top, size).astype(kind)


def test_the_plain_form_is_read():
    levels = grey()
    assert np.array_equal(decode(tiff(page(levels)), "x", Form("L", None))[0], levels)
    colour = RNG.integers(0, 256, (8, 6, 3)).astype(np.uint8)
    got = decode(tiff(page(colour, 3)), "x", Form("RGB", None))
    assert np.array_equal(got, colour.transpose(2, 0, 1))
    deep = RNG.integers(0, 65536, (8, 6)).astype(np.uint16)
    got = decode(tiff(page(deep, order=">"), order=">"), "x", Form("L", None, FULL))
    assert np.array_equal(got[0], np.rint(deep / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(page(grey(size=(8, 6, 4)), 4, t338=0)), "holds 4 channels, of which 3"),
        (tiff(page(grey(size=(8, 6, 6)), 6, t338=[0, 0, 0])), "holds 6 channels, of which 3"),
        (tiff(page(grey(size=(8, 6, 2)), 2, t338=0)), "holds 2 channels, of which 1"),
        (tiff(page(grey(kind=np.int8, top=100), t339=2)), "levels are signed"),
        (
            tiff(page(grey(200, np.int16), order=">", compressed=True, t339=2), order=">"),
            "levels are signed",
        ),
        (
            tiff(page(grey(65536, np.uint16, (3, 8, 6)), 3, t284=2)),
            "channels of 16 bits lie one after the other",
        ),
        (tiff(page(grey(), t32997=5)), "holds 5 images in one page"),
    ],
)
def test_what_would_be_dropped_or_changed_is_refused(data, reason):
    for read in (
        lambda: decode(data, "x", Form("RGB", None, FULL)),
        lambda: read_header(data, "x"),
    ):
        with pytest.raises(DataError, match=reason):
            read()


def test_signed_levels_that_are_read_rightly_are_read():
    levels = grey(200, np.int16)
    got = decode(tiff(page(levels, t339=2)), "x", Form("L", None, 255))
    assert np.array_equal(got[0], levels)


def test_a_stack_of_imagej_in_one_page_is_refused_and_a_slice_of_it_is_read():
    stack = RNG.integers(0, 256, (5, 8, 6)).astype(np.uint8)
    said = b"ImageJ=1.53t\nimages=5\nslices=5\n"
    one = page(stack[0], description=said)
    assert np.array_equal(decode(tiff(one), "x", Form("L", None))[0], stack[0])
    one["behind"] = stack[1:].tobytes()
    with pytest.raises(DataError, match="holds 5 images in one page"):
        decode(tiff(one), "x", Form("L", None))


def test_a_reduced_copy_in_front_is_not_taken_for_the_image():
    whole = grey(size=(16, 12))
    small = page(whole[::4, ::4], t254=1)
    data = tiff(small, page(whole))
    assert np.array_equal(decode(data, "x", Form("L", None))[0], whole)
    assert read_header(data, "x").size == (16, 12)
    hidden = page(whole[::4, ::4], t254=1)
    hidden["inner"] = page(whole)
    with pytest.raises(DataError, match="reduced copies or masks alone"):
        decode(tiff(hidden), "x", Form("L", None))
    alone = decode(tiff(small), "x", Form("L", None))[0]
    assert np.array_equal(alone, whole[::4, ::4])


def test_what_pillow_writes_is_read():
    pixels = RNG.integers(0, 256, (8, 6, 3)).astype(np.uint8)
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        image = Image.fromarray(pixels)
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
        for compression in ("raw", "tiff_lzw"):
            buffer = io.BytesIO()
            image.save(buffer, "TIFF", compression=compression)
            got = decode(buffer.getvalue(), "x", Form("RGB", None))
            assert got.shape == (3, 8, 6), (mode, compression)


def packed(levels, **tags):
    """A page compressed by PackBits, as runs of bytes that are there as they are."""
    one = page(levels, **{"t259": 32773, **tags})
    width = levels.shape[1]
    rows = (one["data"][i : i + width] for i in range(0, len(one["data"]), width))
    return one | {"data": b"".join(bytes([width - 1]) + row for row in rows)}


def test_differences_that_are_packed_are_not_taken_for_levels():
    levels = grey()
    assert np.array_equal(decode(tiff(packed(levels)), "x", Form("L", None))[0], levels)
    differences = np.diff(levels, axis=1, prepend=np.uint8(0))
    with pytest.raises(DataError, match=r"differences between its levels .* by PackBits"):
        decode(tiff(packed(differences, t317=2)), "x", Form("L", None))
