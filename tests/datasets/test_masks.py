"""Images with masks: publishers' layouts written here, the user's own folders, and what is wrong
with them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upslope import datasets
from upslope.errors import ConfigError, DataError


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("L")
        image.putpalette(list(range(256)) * 3, "RGB")
        assert image.mode == "P"
    image.save(path)


def photo(seed, h=6, w=8):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def labels(seed, values, h=6, w=8, dtype=np.uint8):
    return np.random.default_rng(seed).choice(np.array(values, dtype=dtype), (h, w))


def my_folder(root, table, masks, splits=("train", "test")):
    """Two pairs a split; `masks(seed)` draws one."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.csv").write_text(table)
    for s, split in enumerate(splits):
        for i in range(2):
            save(root / f"images/{split}/{i}.png", photo(2 * s + i))
            save(root / f"masks/{split}/{i}.png", masks(2 * s + i))


INDEX = "name,id\nroad,1\nsky, 7\nignore,255\nroad,3\nignore,0\n"


def test_index_masks_by_a_table(tmp_path):
    raw = lambda seed: labels(seed, [1, 7, 255, 3, 0])  # noqa: E731
    my_folder(tmp_path, INDEX, raw)
    for memory in (1.0, 0.0):
        splits = datasets.load("mask-folder", tmp_path, memory=memory)
        pool = splits.pool
        assert pool.resident == (memory > 0)
        assert pool.classes == ("road", "sky")
        assert pool.ids == ("train/0", "train/1")
        assert pool.input_shape == (3, 6, 8)
        np.testing.assert_array_equal(pool.inputs([1])[0], photo(1).transpose(2, 0, 1))
        meaning = {1: 0, 3: 0, 7: 1, 0: 255, 255: 255}
        got = splits.test.targets([1, 0])
        assert got.dtype == torch.uint8
        np.testing.assert_array_equal(got[0], np.vectorize(meaning.get)(raw(3)))
        np.testing.assert_array_equal(got[1], np.vectorize(meaning.get)(raw(2)))


def test_palette_colour_and_16_bit_masks(tmp_path):
    colours = {(128, 0, 0): 0, (0, 0, 142): 1, (0, 0, 0): 255}
    table = "name,red,green,blue\ncar,128,0,0\nbus,0,0,142\nignore,0,0,0\n"
    keys = np.array(list(colours), dtype=np.uint8)
    picks = labels(0, [0, 1, 2])
    my_folder(tmp_path / "rgb", table, lambda _: keys[picks])
    expected = np.array([0, 1, 255])[picks]
    loaded = datasets.load("mask-folder", tmp_path / "rgb")
    np.testing.assert_array_equal(loaded.pool.targets([0])[0], expected)

    table = "name,id\na,0\nb,1000\nc,65535\n"
    my_folder(tmp_path / "deep", table, lambda s: labels(s, [0, 1000, 65535], dtype=np.uint16))
    got = datasets.load("mask-folder", tmp_path / "deep").pool.targets([0])[0]
    raw = labels(0, [0, 1000, 65535], dtype=np.uint16)
    np.testing.assert_array_equal(got, np.searchsorted([0, 1000, 65535], raw))

    my_folder(tmp_path / "palette", "name,id\na,0\nb,1\nc,2\n", lambda s: labels(s, [0, 1, 2]))
    save(tmp_path / "palette/masks/train/0.png", labels(5, [0, 1, 2]), "P")
    got = datasets.load("mask-folder", tmp_path / "palette").pool.targets([0])[0]
    np.testing.assert_array_equal(got, labels(5, [0, 1, 2]))


def test_drawn_split_and_images_without_masks(tmp_path):
    (tmp_path / "classes.csv").write_text("name,id\na,0\nb,1\n")
    for i in range(10):
        save(tmp_path / f"images/{i}.png", photo(i))
        save(tmp_path / f"masks/{i}.png", labels(i, [0, 1]))
    for i in range(3):
        save(tmp_path / f"images/unlabelled/x{i}.png", photo(50 + i))
    splits = datasets.load("mask-folder", tmp_path, test_share=0.3)
    assert (len(splits.pool), len(splits.test)) == (7 + 3, 3)
    assert splits.pool.ids[-1] == "unlabelled/x2"
    assert splits.pool.inputs([9]).shape == (1, 3, 6, 8)
    with pytest.raises(DataError, match=r"mask for 'unlabelled/x0'.*annotator"):
        splits.pool.targets([0, 7])
    again = datasets.load("mask-folder", tmp_path, test_share=0.3)
    assert again.test.ids == splits.test.ids
    held = datasets.load("mask-folder", tmp_path, test_share=0.3, validation=0.2, limit=9)
    assert len(held.validation) == 1  # a fifth of the 6 with masks
    assert held.validation.targets([0]).shape == (1, 6, 8)


def test_unlabelled_images_beside_a_test_set_are_to_learn_from(tmp_path):
    my_folder(tmp_path, INDEX, lambda seed: labels(seed, [1, 7]), splits=("test", "val"))
    with pytest.raises(DataError, match="train or unlabelled, but got test, val"):
        datasets.load("mask-folder", tmp_path)
    for i in range(3):
        save(tmp_path / f"images/unlabelled/x{i}.png", photo(50 + i))
    splits = datasets.load("mask-folder", tmp_path)
    assert splits.pool.ids == ("unlabelled/x0", "unlabelled/x1", "unlabelled/x2")
    assert splits.test.ids == ("test/0", "test/1")
    assert splits.validation.ids == ("val/0", "val/1")
    save(tmp_path / "masks/unlabelled/x1.png", labels(9, [1, 7]))
    assert datasets.load("mask-folder", tmp_path).pool.targets([1]).shape == (1, 6, 8)
    for part in ("images", "masks"):
        save(tmp_path / part / "more/0.png", photo(9) if part == "images" else labels(9, [1, 7]))
    with pytest.raises(DataError, match="train or unlabelled"):
        datasets.load("mask-folder", tmp_path)


def test_image_and_mask_are_brought_to_one_size_alike(tmp_path):
    """A picture that is its own mask still is after the crop to a square and the resampling."""
    (tmp_path / "classes.csv").write_text("name,id\nleft,0\nright,255\n")
    for i, (h, w) in enumerate([(40, 64), (64, 32), (48, 48), (56, 80)]):
        half = np.zeros((h, w), dtype=np.uint8)
        half[:, w // 2 :] = 255
        save(tmp_path / f"images/{i}.png", np.repeat(half[:, :, None], 3, axis=2))
        save(tmp_path / f"masks/{i}.png", half)
    splits = datasets.load("mask-folder", tmp_path, size=16, test_share=0.5)
    for dataset in (splits.pool, splits.test):
        x, y = dataset.inputs([0, 1])[:, 0], dataset.targets([0, 1])
        assert y.shape == (2, 16, 16)
        assert (x[:, :, [0, 1, 2, 3, 4, 5]] == 0).all()
        assert (x[:, :, 10:] == 255).all()
        assert (y == (torch.arange(16) >= 8)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "masks/train/1.png").unlink(), r"1 image has no mask: 'train/1'"),
        (lambda r: (r / "images/test/0.png").unlink(), r"1 mask has no image: 'test/0'"),
        (
            lambda r: save(r / "masks/train/1.png", labels(0, [1], h=5)),
            r"masks/train/1\.png to be of the size of its image .*6 rows of 8.* got 5 rows of 8",
        ),
        (
            lambda r: save(r / "masks/train/0.png", labels(0, [1, 9, 200])),
            r"masks/train/0\.png but got 9, 200 at \d+ of 48 pixels",
        ),
        (lambda r: save(r / "masks/train/0.png", photo(0)), r"Expected indices .* mode is RGB"),
        (
            lambda r: (r / "masks/train/0.png").write_bytes(b"\x89PNG\r\n\x1a\n torn"),
            r"a mask in .*train/0\.png but it cannot be decoded",
        ),
        (
            lambda r: Image.new("L", (8, 6)).save(r / "masks/train/0.png", "JPEG"),
            r"lossless mask but got .*0\.png: JPEG",
        ),
        (
            lambda r: save(r / "images/train/1.png", photo(1, 4, 4)),
            r"\(3, 6, 8\), as the first image, but got \(3, 4, 4\)",
        ),
        (lambda r: (r / "classes.csv").unlink(), "class table .* no such file"),
        (
            lambda r: (r / "classes.csv").write_text("label,id\na,1\n"),
            "columns name,id .* label,id",
        ),
        (
            lambda r: (r / "classes.csv").write_text("name,id\na,1\nb,x\n"),
            r"between 0 and 65535 in line 3 .* 'b' and 'x'",
        ),
        (lambda r: (r / "classes.csv").write_text("name,id\na,1\nb,1\n"), "1 is there again"),
        (lambda r: (r / "classes.csv").write_text("name,id\na,1\n"), "2 to 254 classes .* got 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    my_folder(tmp_path, INDEX, lambda seed: labels(seed, [1, 7, 255]))
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        datasets.load("mask-folder", tmp_path)


def test_pairs_that_cannot_be_used_are_left_out_where_asked(tmp_path):
    my_folder(tmp_path, INDEX, lambda seed: labels(seed, [1, 7, 255]))
    save(tmp_path / "masks/train/0.png", labels(0, [9]))
    for memory in (1.0, 0.0):
        with pytest.warns(UserWarning, match=r"Left out 1 of 2 .*train/0\.png but got 9"):
            splits = datasets.load("mask-folder", tmp_path, on_error="skip", memory=memory)
        assert splits.pool.ids == ("train/1",)
        assert splits.pool.targets([0]).shape == (1, 6, 8)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_rotated_photograph_is_compared_as_it_is_seen(suffix, tmp_path):
    my_folder(tmp_path, INDEX, lambda seed: labels(seed, [1, 7]))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images/train/1.png").unlink()
    Image.fromarray(photo(1, 8, 6)).save(tmp_path / f"images/train/1.{suffix}", exif=exif)
    assert datasets.load("mask-folder", tmp_path).pool.inputs([1]).shape == (1, 3, 6, 8)


def test_a_validation_split_that_is_tested_on_is_told(tmp_path):
    my_folder(tmp_path, INDEX, lambda seed: labels(seed, [1, 7]), ("train", "val"))
    splits = datasets.load("mask-folder", tmp_path)
    assert splits.test.ids == ("val/0", "val/1")
    assert splits.notes == (
        "The images of the validation split are the test set: no split test is there.",
    )
    my_folder(tmp_path, INDEX, lambda seed: labels(seed, [1, 7]), ("train", "val", "test"))
    assert datasets.load("mask-folder", tmp_path, duplicates="off").notes == ()


def test_camvid_in_both_layouts(tmp_path):
    for k, split in enumerate(("train", "val", "test")):
        for i in range(2):
            save(tmp_path / f"a/images/{split}/{i}.png", photo(k))
            save(tmp_path / f"a/labels/{split}/{i}.png", labels(i, range(12)))
            save(tmp_path / f"b/{split}/{i}.png", photo(k))
            save(tmp_path / f"b/{split}annot/{i}.png", labels(i, range(12)))
    first, second = (datasets.load("camvid", tmp_path / name) for name in "ab")
    assert first.pool.ids == second.pool.ids == ("train/0", "train/1")
    assert len(first.validation) == len(first.test) == 2
    assert len(first.pool.classes) == 11
    expected = labels(1, range(12)).astype(int)
    expected[expected == 11] = 255
    np.testing.assert_array_equal(second.test.targets([1])[0], expected)


def test_voc(tmp_path):
    home = tmp_path / "VOCdevkit/VOC2012"
    (home / "ImageSets/Segmentation").mkdir(parents=True)
    for split, ids in (("train", ["2007_000032", "2007_000039"]), ("val", ["2007_000033"])):
        (home / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids) + "\n")
        for k, i in enumerate(ids):
            save(home / f"JPEGImages/{i}.jpg", photo(k, 30 + k, 50))
            save(home / f"SegmentationClass/{i}.png", labels(k, [0, 15, 255], 30 + k, 50), "P")
    splits = datasets.load("voc", tmp_path, size=20)
    assert splits.pool.ids == ("2007_000032", "2007_000039")
    assert splits.pool.input_shape == (3, 20, 20)
    assert len(splits.pool.classes) == 21
    assert set(splits.test.targets([0]).unique().tolist()) == {0, 15, 255}
    (home / "SegmentationClass/2007_000033.png").unlink()
    with pytest.raises(
        DataError, match=r"val\.txt lists but 1 file is missing, .*2007_000033\.png"
    ):
        datasets.load("voc", tmp_path)
    with pytest.raises(DataError, match=r"train\.txt in .*host\.robots"):
        datasets.load("voc", home / "JPEGImages")


def test_cityscapes_as_downloaded(tmp_path):
    for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "munster")):
        stem = f"{city}_000001_000019"
        save(tmp_path / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", photo(1, 8, 16))
        home = tmp_path / f"gtFine/{split}/{city}"
        save(home / f"{stem}_gtFine_labelIds.png", labels(1, range(34), 8, 16))
        save(home / f"{stem}_gtFine_instanceIds.png", labels(1, range(34), 8, 16))
    splits = datasets.load("cityscapes", tmp_path)
    assert splits.pool.ids == ("train/aachen_000001_000019", "train/zurich_000001_000019")
    assert len(splits.pool.classes) == 19
    # id -> train id, from the publisher's table
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10}
    train_ids |= {24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    expected = np.vectorize(lambda v: train_ids.get(v, 255))(labels(1, range(34), 8, 16))
    np.testing.assert_array_equal(splits.test.targets([0])[0], expected)
    mean, std = datasets.statistics(splits.pool)
    assert mean[1] == 0.3281
    assert std[2] == 0.1845
    wide = datasets.load("cityscapes", tmp_path, width=64)
    assert wide.pool.input_shape == (3, 32, 64)
    assert wide.test.targets([0]).shape == (1, 32, 64)
    next((tmp_path / "gtFine/val").rglob("*labelIds.png")).unlink()
    with pytest.raises(DataError, match=r"gtFine/val/.* but got 1 and 0.*cityscapes-dataset\.com"):
        datasets.load("cityscapes", tmp_path)


@pytest.mark.data
def test_real_camvid():
    root = os.environ.get("UPSLOPE_DATA", "")
    if not (Path(root) / "camvid").is_dir():
        pytest.skip("UPSLOPE_DATA names no folder with camvid")
    splits = datasets.load("camvid", root, memory=0)
    assert [len(splits.pool), len(splits.validation), len(splits.test)] == [367, 101, 233]
    assert splits.pool.input_shape == (3, 180, 240)
    seen = torch.bincount(splits.pool.targets(range(0, 367, 8)).flatten().long(), minlength=256)
    share = seen / seen.sum()
    assert share[3] == pytest.approx(0.295, abs=0.05)  # road, over all splits
    assert share[255] == pytest.approx(0.036, abs=0.03)


def test_a_pool_without_masks_is_refused_for_a_comparison_without_a_word_on_words(tmp_path):
    """No option of this reader says which words stand for no label, as the advice had it."""
    my_folder(tmp_path, INDEX, lambda seed: labels(seed, [1, 7]))
    save(tmp_path / "images/unlabelled/a.png", photo(9))
    with pytest.raises(ConfigError, match=r"first 'unlabelled/a'\. Take .*leave them out\.$"):
        datasets.check_labelled(datasets.load("mask-folder", tmp_path).pool)
