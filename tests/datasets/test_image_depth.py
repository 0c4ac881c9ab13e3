"""Images of 16 bits and of several pages: no level and no page goes without a word."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from upslope import datasets
from upslope.errors import DataError
from upslope.image_depth import FULL
from upslope.images import Form, decode, highest_level, read_header

RNG = np.random.default_rng(0)


def png16(levels):
    """A PNG of 16 bits per channel, from (h, w, c), written by hand: Pillow writes grey alone."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def by_class(root, make, count=5):
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(count):
            make(root / name / f"{i}.png")


def grey(path, top, bottom=0):
    Image.fromarray(RNG.integers(bottom, top, (32, 32)).astype(np.uint16)).save(path)


@pytest.mark.parametrize(
    ("top", "white", "kept"), [(4096, 4095, 17), (256, 255, 2), (1024, 1023, 5)]
)
def test_shallow_images_ask_for_their_white(tmp_path, top, white, kept):
    by_class(tmp_path, lambda path: grey(path, top))
    told = rf"such as \S+\.png, is \d+: .* would keep {kept} levels. .* such as {white};"
    with pytest.raises(DataError, match=told):
        datasets.load("folder", tmp_path, mode="L")
    splits = datasets.load("folder", tmp_path, mode="L", white=white)
    stored = np.asarray(Image.open(tmp_path / splits.pool.ids[0])).astype(float)
    read = splits.pool.inputs([0])[0, 0].numpy()
    np.testing.assert_array_equal(read, np.rint(stored * 255 / white).astype(np.uint8))
    assert len(np.unique(read)) == len(np.unique(np.rint(stored * 255 / white)))
    (note,) = [note for note in splits.notes if "16 bits" in note]
    assert note.startswith(f"10 of 10 images hold 16 bits: with {white} as white (`data.white`), ")
    full = datasets.load("folder", tmp_path, mode="L", white=FULL)
    assert len(full.pool.inputs([0]).unique()) <= kept


def test_one_white_for_the_whole_data_set(tmp_path):
    by_class(tmp_path, lambda path: grey(path, 4096 if path.parent.name == "a" else 900))
    pool = datasets.load("folder", tmp_path, white=4095).pool
    dark = [i for i, id_ in enumerate(pool.ids) if id_.startswith("b")]
    assert int(pool.inputs(dark).max()) == round(899 * 255 / 4095)
    with pytest.raises(DataError, match=r"grey level \d+, above the 1023 of `data.white`"):
        datasets.load("folder", tmp_path, white=1023)


def test_full_range_needs_no_option(tmp_path):
    by_class(tmp_path, lambda path: grey(path, 2**16))
    splits = datasets.load("folder", tmp_path, mode="L")
    stored = np.asarray(Image.open(tmp_path / splits.pool.ids[0])).astype(float)
    assert np.array_equal(splits.pool.inputs([0])[0, 0], np.rint(stored / 257))
    assert any("with 65535 as white (`data.white`), 257 of their levels" in n for n in splits.notes)


def test_a_deep_image_among_shallow_ones_is_not_clipped(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("L", (4, 4), 9).save(tmp_path / name / f"{i}.png")
    shape = (4, 4)
    datasets.load("folder", tmp_path, mode="L")
    Image.fromarray(np.full(shape, 4000, np.uint16)).save(tmp_path / "a/3.png")
    with pytest.raises(DataError, match="16-bit"):
        datasets.load("folder", tmp_path, mode="L").pool.inputs(range(8))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits(tmp_path, channels):
    full = png16(RNG.integers(0, 2**16, (6, 7, channels)))
    assert read_header(full, "x").deep
    assert highest_level(full, "x") > FULL // 2
    assert decode(full, "x", Form("RGB", None, FULL)).shape == (3, 6, 7)
    with pytest.raises(DataError, match="16 bits per channel"):
        decode(full, "x", Form("RGB", None))
    by_class(tmp_path, lambda path: path.write_bytes(png16(RNG.integers(0, 4096, (6, 7, 3)))))
    with pytest.raises(DataError, match=r"would keep 16 levels\. Of colour the upper 8 bits"):
        datasets.load("folder", tmp_path)
    with pytest.raises(DataError, match="upper 8 can be read"):
        datasets.load("folder", tmp_path, white=4095)


def test_white_is_zero_is_not_turned_around():
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[262] = 0
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 9, np.uint16)).save(buffer, "TIFF", tiffinfo=directory)
    with pytest.raises(DataError, match="WhiteIsZero"):
        decode(buffer.getvalue(), "x", Form("L", None, FULL))


def pages(kind, count=5, **options):
    images = [Image.new("L", (8, 8), 40 * i + 9) for i in range(count)]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_stacks_are_refused(tmp_path, kind):
    stack = pages(kind)
    assert Image.open(io.BytesIO(stack)).n_frames == 5
    for read in (lambda d: decode(d, "x", Form("L", None)), lambda d: read_header(d, "x")):
        with pytest.raises(DataError, match="5 pages or frames, of which one alone"):
            read(stack)
    suffix = {"TIFF": "tif"}.get(kind, kind.lower())
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            (tmp_path / name / f"{i}.{suffix}").write_bytes(pages(kind, 1))
    single = datasets.load("folder", tmp_path, mode="L")
    assert single.pool.inputs([0]).float().mean() == pytest.approx(9, abs=1)
    (tmp_path / f"b/4.{suffix}").write_bytes(stack)
    for memory in (4.0, 0.0):  # streamed images are looked at before a run begins, too
        with pytest.raises(DataError, match="5 pages or frames"):
            datasets.load("folder", tmp_path, mode="L", memory=memory)


def test_reduced_copies_and_further_pictures_are_no_pages(tmp_path):
    buffer = io.BytesIO()
    first, thumb = Image.new("L", (8, 8), 77), Image.new("L", (4, 4), 5)
    thumb.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(buffer, "TIFF", save_all=True, append_images=[thumb])
    data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
        image.seek(1)
        assert image.tag_v2[254] == 1
    assert decode(data, "x", Form("L", None)).max() == 77
    two = pages("MPO", 2)
    assert read_header(two, "x").further
    assert decode(two, "x", Form("L", None)).shape == (1, 8, 8)


@pytest.mark.parametrize(("most", "top", "kept"), [(65535, 4096, 17), (1023, 400, 0)])
def test_colour_of_more_than_8_bits_in_ppm_files(tmp_path, most, top, kept):
    """Pillow scales by the level that the file states, and keeps 8 bits."""

    def write(path):
        levels = RNG.integers(0, top, (8, 8, 3)).astype(">u2")
        path.with_suffix(".ppm").write_bytes(b"P6 8 8 %d\n" % most + levels.tobytes())

    by_class(tmp_path, write)
    if kept:
        with pytest.raises(DataError, match=rf"would keep {kept} levels\. Of colour the upper 8"):
            datasets.load("folder", tmp_path)
        return
    with pytest.raises(DataError, match=r"would keep 1\d\d levels"):
        datasets.load("folder", tmp_path)
    splits = datasets.load("folder", tmp_path, white=FULL)
    assert any("hold 16 bits" in note for note in splits.notes)
    stored = np.frombuffer((tmp_path / splits.pool.ids[0]).read_bytes()[-384:], ">u2")
    right = np.rint(stored.reshape(8, 8, 3).transpose(2, 0, 1) * (255 / most))
    assert np.abs(splits.pool.inputs([0])[0].numpy().astype(int) - right).max() <= 1


def netpbm(kind, level, maximum):
    """A PBM, PGM or PPM file of 9 x 4 pixels."""
    if kind == b"P4":
        return b"P4\n# c\n9 4\n" + bytes([level & 0xFF, 0x80]) * 4
    count = 9 * 4 * (3 if kind == b"P6" else 1) * (2 if maximum > 255 else 1)
    return kind + b"\n9 4\n%d\n" % maximum + bytes([level & 0x3F]) * count


@pytest.mark.parametrize(
    ("kind", "maximum"),
    [(b"P4", 1), (b"P5", 255), (b"P5", 100), (b"P5", 65535), (b"P5", 16383), (b"P6", 255),
     (b"P6", 100), (b"P6", 65535)],
)  # fmt: skip
@pytest.mark.parametrize("between", [b"", b"\n"])
def test_a_second_image_of_a_netpbm_file_is_refused(kind, maximum, between):
    one, other = (netpbm(kind, level, maximum) for level in (3, 5))
    with pytest.raises(DataError, match="another image follows in the same file"):
        read_header(one + between + other, "the file")
    for end in (b"", b"\n", b"P", bytes(40), b"Pictures of mine"):
        assert read_header(one + end, "the file") == read_header(one, "the file")


@pytest.mark.parametrize(
    ("maximum", "white", "grey"),
    [
        (4095, 4095, [0, 128, 255]),
        (4095, FULL, [0, 128, 255]),  # the file says what is white
        (1023, 4095, [0, 32, 64]),
        (FULL, FULL, [0, 128, 255]),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_levels_of_pgm_are_those_of_the_file(maximum, white, grey, as_text):
    """Pillow brings them to 65,535, so that the white of the file's levels was refused as lower."""
    levels = [0, (maximum + 1) // 2, maximum]
    head = f"P{2 if as_text else 5}\n3 1\n{maximum}\n".encode()
    text = " ".join(map(str, levels)).encode() + b"\n"
    content = head + (text if as_text else np.array(levels, ">u2").tobytes())
    assert decode(content, "a.pgm", Form("L", None, white)).ravel().tolist() == grey
