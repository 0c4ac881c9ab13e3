"""Masks that are not what they seem, and folders of masks in other spellings."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.errors import DataError

RNG = np.random.default_rng(0)
GREYS = "name,id\nnone,0\nleaf,128\nroot,255\n"


def photograph():
    return Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))


def levels(values):
    return RNG.choice(np.array(values, dtype=np.uint8), (6, 8))


def lay(root, splits=("train", "test"), table=GREYS, count=3):
    root.mkdir(exist_ok=True)
    (root / "classes.csv").write_text(table)
    for split in splits:
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            photograph().save(root / f"images/{split}/{i}.png")
            Image.fromarray(levels([0, 128, 255])).save(root / f"masks/{split}/{i}.png")


def load(root, **options):
    return datasets.load("mask-folder", root, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("AVIF", {"quality": 100}), ("WEBP", {"lossless": False, "quality": 100}),
     ("TIFF", {"compression": "jpeg"})],
)  # fmt: skip
def test_masks_with_losses_are_refused_by_content(tmp_path, kind, options):
    lay(tmp_path)
    Image.fromarray(levels([0, 255])).save(tmp_path / "masks/train/1.png", kind, **options)
    with pytest.raises(DataError, match=rf"lossless mask but got .*1\.png: {kind} with losses"):
        load(tmp_path)


def test_lossless_webp_is_read(tmp_path):
    lay(tmp_path)
    mask = levels([0, 128, 255])
    rgb = "name,red,green,blue\nnone,0,0,0\nleaf,128,128,128\nroot,255,255,255\n"
    (tmp_path / "classes.csv").write_text(rgb)
    for path in tmp_path.glob("masks/*/*.png"):
        Image.fromarray(mask).convert("RGB").save(path, "WEBP", lossless=True)
    expected = np.searchsorted([0, 128, 255], mask)
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], expected)


def palette(mask, colours):
    image = Image.fromarray(mask, mode=None).convert("L")
    image = Image.fromarray(np.asarray(image))
    image.putpalette([level for colour in colours for level in colour])
    return image


def test_palette_of_greys_under_new_numbers(tmp_path):
    """0, 128, 255 saved as entries 0, 1, 2 of a palette, as programs do with few levels."""
    lay(tmp_path)
    entries = levels([0, 1, 2])
    entries[0, 0] = 1
    image = palette(entries, [(0,) * 3, (128,) * 3, (255,) * 3])
    assert image.mode == "P"
    image.save(tmp_path / "masks/train/0.png")
    splits = load(tmp_path)
    assert np.array_equal(splits.pool.targets([0])[0], entries)
    (note,) = splits.notes
    assert note.startswith("Masks are of several kinds (5 grey, 1 palette)")
    both = GREYS + "stem,1\nbud,2\n"
    (tmp_path / "classes.csv").write_text(both)
    with pytest.raises(
        DataError, match="the number 1 is the grey 128, and both stand for something"
    ):
        load(tmp_path)
    (tmp_path / "classes.csv").write_text("name,id\nnone,0\nleaf,1\nroot,2\nx,128\ny,254\n")
    Image.fromarray(entries).save(tmp_path / "masks/train/1.png")
    for i in (1, 2):
        Image.fromarray(entries).save(tmp_path / f"masks/train/{i}.png")
    for i in range(3):
        Image.fromarray(entries).save(tmp_path / f"masks/test/{i}.png")
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], entries)  # 255 is no class here


def test_colours_of_a_palette_leave_its_numbers(tmp_path):
    lay(tmp_path, table="name,id\nnone,0\nleaf,1\nroot,2\n")
    entries = levels([0, 1, 2])
    for path in tmp_path.glob("masks/*/*.png"):
        palette(entries, [(0, 0, 0), (200, 0, 0), (0, 9, 0)]).save(path)
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], entries)


def test_stacks_and_turned_masks(tmp_path):
    lay(tmp_path)
    mask = levels([0, 128, 255])
    exif = Image.Exif()
    exif[0x0112] = 3
    upside_down = Image.fromarray(mask[::-1, ::-1].copy())
    upside_down.save(tmp_path / "masks/train/0.png", exif=exif)
    expected = np.searchsorted([0, 128, 255], mask)
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], expected)
    pages = [Image.fromarray(levels([0, 255])) for _ in range(3)]
    pages[0].save(tmp_path / "masks/train/0.png", "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"a mask in .*0\.png .* 3 pages or frames"):
        load(tmp_path)


@pytest.mark.parametrize("splits", [("Train", "Test"), ("training", "testing"), ("train", "dev")])
def test_splits_in_other_spellings(tmp_path, splits):
    lay(tmp_path, splits)
    opened = load(tmp_path)
    assert {id_.split("/")[0] for id_ in opened.pool.ids} == {splits[0]}
    assert {id_.split("/")[0] for id_ in opened.test.ids} == {splits[1]}


def test_what_is_left_out_is_told(tmp_path):
    lay(tmp_path, ("train", "test", "old"), count=2)
    (tmp_path / "images/train/a.dng").touch()
    (tmp_path / "images/.hidden").mkdir()
    opened = load(tmp_path)
    assert opened.notes == (
        "Left out 1 file of the kind .dng, which is not read as an image: 'train/a.dng'.",
        "Left out 1 hidden folder: '.hidden'.",
        "Left out 2 pairs outside of the folders of the splits: 'old/0', 'old/1'.",
    )
    lay(tmp_path / "two", ("train", "Train", "test"))
    with pytest.raises(DataError, match=r"one folder for each split .* Train, test, train"):
        load(tmp_path / "two")
    lay(tmp_path / "none", ("test", "val"))
    with pytest.raises(DataError, match="one of them to learn from"):
        load(tmp_path / "none")


def test_copies_of_a_pair(tmp_path):
    lay(tmp_path)
    (tmp_path / "images/test/2.png").write_bytes((tmp_path / "images/train/0.png").read_bytes())
    (note,) = load(tmp_path).notes
    assert note.startswith("1 image of the test set is a copy, byte for byte, of an image of the")


def test_deep_images(tmp_path):
    lay(tmp_path)
    for path in tmp_path.glob("images/*/*.png"):
        Image.fromarray(RNG.integers(0, 4096, (6, 8)).astype(np.uint16)).save(path)
    with pytest.raises(DataError, match="would keep 17 levels"):
        load(tmp_path, mode="L")
    pool = load(tmp_path, mode="L", white=4095).pool
    stored = np.asarray(Image.open(tmp_path / "images/train/0.png")).astype(float)
    assert np.array_equal(pool.inputs([0])[0, 0], np.rint(stored * 255 / 4095))


def test_classes_that_may_count_nowhere_are_told(tmp_path):
    lay(tmp_path, table="name,id\nnone,0\nleaf,128\nVoid,255\n")
    (note,) = load(tmp_path).notes
    assert note.startswith("The class 'Void' counts as the others do. If it stands for pixels")


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_colours_of_16_bits_are_refused(tmp_path, kind):
    """Pillow keeps their upper 8 bits: small numbers were all (0, 0, 0), without a word."""
    lay(tmp_path, table="name,red,green,blue\nnone,0,0,0\nleaf,1,2,3\n")
    for path in tmp_path.glob("masks/*/*.png"):
        pixels = np.array([[0, 0, 0], [1, 2, 3]], np.uint8)[RNG.integers(0, 2, (6, 8))]
        Image.fromarray(pixels).save(path)
    load(tmp_path)
    wide = pixels.astype(">u2").tobytes()
    content = b"P6 8 6 65535\n" + wide if kind == "PPM" else png(8, 6, wide)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"colours of more than 8 bits, of which the upper 8"):
        load(tmp_path)


def png(width, height, samples):
    """The content of a PNG of colours of 16 bits."""
    row = len(samples) // height
    rows = b"".join(b"\0" + samples[i : i + row] for i in range(0, len(samples), row))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


BOTH = """name,id,red,green,blue
none,0,0,0,0
leaf,1,0,200,0
root,2,200,0,0
ignore,255,9,9,9
"""


def test_a_class_table_with_ids_and_colours_reads_each_mask_as_it_is(tmp_path):
    lay(tmp_path, table=BOTH, count=4)
    entries = levels([0, 1, 2])
    entries[0, :3] = 0, 1, 2
    colours = np.array([(0, 0, 0), (0, 200, 0), (200, 0, 0)], dtype=np.uint8)
    for split in ("train", "test"):
        folder = tmp_path / "masks" / split
        Image.fromarray(entries).save(folder / "0.png")
        Image.fromarray(colours[entries]).save(folder / "1.png")
        palette(entries, colours.tolist()).save(folder / "2.png")  # by number and by colour alike
        palette(entries + 5, [(7, 7, 7)] * 5 + colours.tolist()).save(folder / "3.png")  # by colour
    splits = load(tmp_path)
    for mask in splits.pool.targets(range(4)):
        assert np.array_equal(mask, entries)
    assert "(2 RGB, 2 grey, 4 palette)" in splits.notes[-1]
    others = [(0, 0, 0), (200, 0, 0), (0, 200, 0)]  # entry 1 has the colour of class 2
    palette(entries, others).save(tmp_path / "masks/train/2.png")
    with pytest.raises(DataError, match="of another class by number than by colour"):
        load(tmp_path)
    (tmp_path / "classes.csv").write_text(BOTH.replace("leaf,1", "leaf,0"))
    with pytest.raises(DataError, match="0 is there again, line 3"):
        load(tmp_path)


def tiff(mask, bits, white_is_zero):
    """The content of a TIFF whose stored numbers are those of a mask, 8 pixels wide."""
    rows = np.unpackbits(mask[..., None].astype(np.uint8), axis=2)[..., 8 - bits :]
    pixels = np.packbits(rows.reshape(len(mask), -1), axis=1).tobytes()
    tags = {256: mask.shape[1], 257: len(mask), 258: bits, 259: 1, 262: int(not white_is_zero),
            273: 8, 277: 1, 278: len(mask), 279: len(pixels)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers_of_a_tiff_are_those_that_it_stores(tmp_path, bits, white_is_zero):
    lay(tmp_path, table="name,id\nnone,0\nleaf,1\nroot,2\nx,128\ny,255\n")
    entries = levels([0, 1, 2])
    entries[0, :3] = 0, 1, 2
    (tmp_path / "masks/train/0.png").write_bytes(tiff(entries, bits, white_is_zero))
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], entries)


def test_a_mask_that_may_be_inverted_is_refused(tmp_path):
    """Of 0 and 255, each is the other once inverted, and both stand for something."""
    lay(tmp_path)
    path = tmp_path / "masks/train/0.png"
    path.write_bytes(tiff(levels([0, 255]), 8, white_is_zero=True))
    with pytest.raises(DataError, match=r"the number (0 is the grey 255|255 is the grey 0)"):
        load(tmp_path)
    lay(tmp_path / "bits", table="name,id\nnone,0\nleaf,1\nroot,128\ny,255\n")
    path = tmp_path / "bits/masks/train/0.png"
    mask = levels([0, 1])
    for content in (tiff(mask, 1, True), b"P4 8 6 " + np.packbits(mask, axis=1).tobytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"the number (0 is the grey 1|1 is the grey 0)"):
            load(tmp_path / "bits")
    path.write_bytes(tiff(mask, 1, white_is_zero=False))
    assert np.array_equal(load(tmp_path / "bits").pool.targets([0])[0], mask)


@pytest.mark.parametrize("top", [3, 255, 256, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_numbers_of_a_pgm_are_those_that_it_stores(tmp_path, top, plain):
    """Numbers of files of more than 8 bits were those that Pillow scales them to."""
    lay(tmp_path, table="name,id\nnone,0\nleaf,1\nroot,2\nx,128\ny,255\n")
    entries = levels([0, 1, 2])
    samples = entries.astype(">u2" if top > 255 else "u1").tobytes()
    if plain:
        samples = " ".join(map(str, entries.ravel())).encode()
    header = f"P{2 if plain else 5} 8 6 {top}\n".encode()
    (tmp_path / "masks/train/0.png").write_bytes(header + samples)
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], entries)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("ignored", ["", "edge,1\n"])
def test_white_of_one_bit_is_255_where_1_stands_for_nothing(tmp_path, kind, ignored):
    lay(tmp_path, table=f"name,id\nnone,0\nroot,255\n{ignored}")
    entries = levels([0, 255])
    entries[0, :2] = 0, 255
    for path in tmp_path.glob("masks/*/*.png"):
        Image.fromarray(entries).convert("1").save(path, kind)
    if ignored and kind == "PPM":
        with pytest.raises(DataError, match="both stand for something"):
            load(tmp_path)
        return
    expected = (entries > 0) * (2 if ignored else 1)
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], expected)


def test_of_one_bit_what_may_be_inverted_is_refused(tmp_path):
    """White alone is 255, or the 0 that a PBM file has there."""
    lay(tmp_path, table="name,id\nnone,0\nroot,255\n")
    Image.new("1", (8, 6), 1).save(tmp_path / "masks/train/0.png", "PPM")
    with pytest.raises(DataError, match="the number 0 is the grey 255, and both stand for"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["LA", "RGBA"])
def test_an_alpha_channel_counts_where_it_is_not_opaque(tmp_path, kind):
    by_colour = "name,red,green,blue\nnone,0,0,0\nleaf,128,128,128\nroot,255,255,255\n"
    lay(tmp_path, table=GREYS if kind == "LA" else by_colour)
    entries = levels([0, 128, 255])
    for path in tmp_path.glob("masks/*/*.png"):
        Image.fromarray(entries).convert(kind).save(path)
    expected = np.searchsorted([0, 128, 255], entries)
    assert np.array_equal(load(tmp_path).pool.targets([0])[0], expected)
    mask = Image.fromarray(entries).convert(kind)
    mask.putpixel((0, 0), (0, 0) if kind == "LA" else (0, 0, 0, 0))
    mask.save(path)
    with pytest.raises(DataError, match=f"its mode is {kind}"):
        load(tmp_path)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_masks_that_are_not_turned_as_their_images_are_told(tmp_path, orientation):
    """Of the same size, they could be drawn on the image as it is stored."""
    lay(tmp_path)
    image, mask = (tmp_path / f"{kind}/train/1.png" for kind in ("images", "masks"))
    photograph().save(image, **turned(orientation))
    (note,) = (note for note in load(tmp_path).notes if "masks" in note)
    assert note.startswith("1 image is turned as the EXIF data say, and their masks have no such")
    Image.open(mask).save(mask, **turned(orientation))
    assert not any("masks" in note for note in load(tmp_path).notes)


def test_masks_of_one_class_beside_ignored_pixels_are_told(tmp_path):
    """White is ignored where it is the number of what counts nowhere, as in VOC."""
    lay(tmp_path, table="name,id\nground,0\ncell,1\nignore,255\n")
    for path in tmp_path.glob("masks/*/*.png"):
        mask = np.zeros((6, 8), np.uint8)
        mask[:2] = 255
        Image.fromarray(mask).save(path)
    (note,) = (note for note in load(tmp_path).notes if "that count" in note)
    assert note.startswith("All 192 pixels of the masks that count are of the class 'ground', and")
    assert "96 are ignored" in note
    mask[5, 5] = 1
    Image.fromarray(mask).save(path)
    assert not any("that count" in note for note in load(tmp_path).notes)
