"""Decoding to one form: modes, depth, transparency, rotation, size."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from upslope import image_formats, images
from upslope.errors import DataError
from upslope.image_depth import FULL
from upslope.images import Form, decode, read_header


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_grey_to_rgb_and_back():
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    rgb = decode(encoded(grey), "x", Form("RGB", None))
    assert rgb.shape == (3, 3, 4)
    assert (rgb == np.arange(12).reshape(3, 4)).all()
    assert decode(encoded(Image.new("RGB", (4, 3), (9, 9, 9))), "x", Form("L", None)).tolist() == [
        [[9] * 4] * 3
    ]


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257, 65535, 32896]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(levels)), "x", Form("L", None, FULL))
    assert pixels.tolist() == [[[0, 1, 255, 128]]]


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert decode(encoded(image), "x", Form("RGB", None))[:, 0].T.tolist() == [
        [255, 255, 255],
        [10, 20, 30],
    ]


def test_exif_rotation_is_applied():
    image = Image.fromarray(np.array([[0, 50, 100], [150, 200, 250]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    data = encoded(image, exif=exif)
    assert decode(data, "x", Form("L", None)).tolist() == [[[150, 0], [200, 50], [250, 100]]]
    header = read_header(data, "x")
    assert (header.natural, header.size, header.turned) == ("L", (3, 2), True)


def test_size_crops_the_centre_and_keeps_the_shape_of_things():
    pixels = np.zeros((10, 30), dtype=np.uint8)
    pixels[:, 10:20] = 200
    square = decode(encoded(Image.fromarray(pixels)), "x", Form("L", (5, 5)))[0].astype(int)
    # The black sides are gone, but for what bicubic resampling takes from beyond the crop.
    assert np.abs(square - 200).max() < 20
    assert np.abs(square[:, 1:4] - 200).max() <= 2


def test_reduced_jpeg_decoding_changes_little():
    y, x = np.mgrid[:400, :400]
    smooth = Image.fromarray(((x + y) / 4).astype(np.uint8))
    data = encoded(smooth, "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BICUBIC))
    reduced = decode(data, "x", Form("L", (32, 32)))[0]
    assert np.abs(whole.astype(int) - reduced).max() <= 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty, of 0 bytes"),
        (b"no image at all", "cannot identify"),
        (encoded(Image.new("L", (40, 40)), "JPEG")[:200], "[Tt]runcated|identify"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floats"),
    ],
)
def test_what_cannot_be_decoded_is_named(data, reason):
    with pytest.raises(DataError, match=rf"holiday\.jpg .*({reason})"):
        decode(data, "holiday.jpg", Form("L", None))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP", "AVIF"])
def test_a_header_states_the_size_of_the_image_as_it_is_once_turned(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (24, 16)).save(file, format=kind, exif=exif)
    header = read_header(file.getvalue(), "it")
    assert header.size == decode(file.getvalue(), "it", Form("RGB", None)).shape[1:]
    assert header.turned == (orientation > 1)


def _png(depth, kind, rows, *, before=(), behind=()):
    """A PNG by hand. rows: (h, bytes per row) uint8; before, behind: (name, content) of chunks."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    width = rows.shape[1] * 8 // depth // {0: 1, 2: 3}[kind]
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0))
    body += b"".join(chunk(*one) for one in before)
    body += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    body += b"".join(chunk(*one) for one in behind)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


_XMP = (
    b"XML:com.adobe.xmp\0\0\0\0\0"
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
)


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("chunk", ["exif", "xmp"])
def test_an_orientation_anywhere_in_a_png_is_applied_and_told(where, chunk):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = {"exif": (b"eXIf", exif.tobytes()[6:]), "xmp": (b"iTXt", _XMP)}[chunk]
    rows = np.array([[0, 50, 100], [150, 200, 250]], dtype=np.uint8)
    data = _png(8, 0, rows, **{where: [content]})
    assert decode(data, "x", Form("L", None))[0].tolist() == np.rot90(rows, -1).tolist()
    header = read_header(data, "x")
    assert (header.size, header.turned) == ((3, 2), True)


def test_other_texts_behind_the_pixels_of_a_png_turn_nothing():
    rows = np.array([[0, 50, 100], [150, 200, 250]], dtype=np.uint8)
    data = _png(8, 0, rows, behind=[(b"tEXt", b"date:create\x002026-01-01"), (b"tIME", bytes(7))])
    header = read_header(data, "x")
    assert (header.size, header.turned) == ((2, 3), False)
    assert decode(data, "x", Form("L", None))[0].tolist() == rows.tolist()


@pytest.mark.parametrize(("depth", "level"), [(2, 1), (4, 10), (8, 100), (16, 5000)])
def test_a_transparent_level_of_any_depth_is_laid_over_white(depth, level):
    top = 2**depth - 1
    levels = np.array([[level, 0, top, level], [0, level, level, top]])
    bits = np.unpackbits(levels.astype(">u2").view(np.uint8).reshape(2, 4, 2), axis=2)
    rows = np.packbits(bits[:, :, 16 - depth :].reshape(2, -1), axis=1)
    white = FULL if depth == 16 else None
    plain = decode(_png(depth, 0, rows), "x", Form("L", None, white))[0]
    assert np.array_equal(plain, np.rint(levels * 255 / top))
    data = _png(depth, 0, rows, before=[(b"tRNS", struct.pack(">H", level))])
    assert read_header(data, "x").transparent
    laid = decode(data, "x", Form("L", None, white))[0]
    assert np.array_equal(laid, np.where(levels == level, 255, plain))


def test_a_transparent_colour_of_16_bits_is_refused():
    rows = np.arange(48, dtype=np.uint8).reshape(2, 24)
    data = _png(16, 2, rows, before=[(b"tRNS", bytes(range(6)))])
    with pytest.raises(DataError, match="a colour of its 16 bits per channel is transparent"):
        decode(data, "x", Form("RGB", None, FULL))


def test_an_animated_avif_is_refused():
    frames = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 99)]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="it holds 2 pages or frames"):
        decode(data, "x", Form("RGB", None))


@pytest.mark.parametrize("magic", [b"P1", b"P2", b"P4", b"P5"])
def test_a_second_image_in_a_file_of_grey_levels_is_refused(magic):
    levels = b"1 0 1 0 0 1\n" if magic in (b"P1", b"P2") else bytes(3 if magic == b"P4" else 6)
    one = (
        magic
        + b" # P5 is another kind\n2 3\n"
        + (b"" if magic in (b"P1", b"P4") else b"9\n")
        + levels
    )
    assert decode(one, "x", Form("L", None)).shape == (1, 3, 2)
    with pytest.raises(DataError, match="another image follows in the same file"):
        decode(one + one, "x", Form("L", None))


@pytest.mark.parametrize("as_file", [True, False])
def test_a_heic_picture_under_another_suffix_is_told_as_such(as_file, tmp_path, monkeypatch):
    monkeypatch.setattr(image_formats, "reads_heic", lambda: False)
    content = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(64)
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"it is a HEIC picture, .* pip install '\.\[label\]'"):
        images.read_header(path if as_file else content, "a.jpg")


def test_messages_name_no_object_in_memory():
    with pytest.raises(DataError) as error:
        images.read_header(b"no image at all", "a.jpg")
    assert "cannot identify it as one of AVIF, BMP" in str(error.value)
    assert "BytesIO" not in str(error.value)


def test_an_image_of_allowed_size_brings_no_warning_of_pillow(tmp_path):
    # In a process of its own, since the tests make errors of warnings.
    path = tmp_path / "large.png"
    Image.new("1", (9500, 9500)).save(path)  # 90 million pixels; Pillow warns from 89.5 million on
    code = (
        "import sys; from pathlib import Path; from upslope.images import read_header\n"
        "print(read_header(Path(sys.argv[1]), 'large.png').size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("(9500, 9500)\n", "")
