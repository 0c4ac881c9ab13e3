"""Whatever is wrong with the images of a data set, errors and notes advise options that it has."""

import io
import re
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_image_depth import png16

from upslope import datasets
from upslope.datasets import caltech, imagenet
from upslope.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
SHAPE = (64, 128)


def eight_bits(mode="RGB", shape=SHAPE):
    stream = io.BytesIO()
    levels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(levels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def deep(channels, top):
    return png16(RNG.integers(0, top, (*SHAPE, channels)))


FAULTS = {
    "shallow grey": lambda i: deep(1, 4096),
    "deep grey": lambda i: deep(1, 2**16),
    "one deep grey": lambda i: deep(1, 2**16) if i == 1 else eight_bits(),
    "shallow colour": lambda i: deep(3, 4096),
    "deep colour": lambda i: deep(3, 2**16),
    "one deep colour": lambda i: deep(3, 2**16) if i == 1 else eight_bits(),
    "other sizes": lambda i: eight_bits(shape=(64 + i, 128 + 3 * i)),
    "small": lambda i: eight_bits(shape=(8, 16)),
    "grey": lambda i: eight_bits("L"),
    "corrupt": lambda i: eight_bits()[: 200 if i == 1 else None],
    "no image": lambda i: b"no image" if i == 1 else eight_bits(),
}
"""What is wrong -> the content of the image of a number."""
COUNT = 6


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def mask_of(content):
    try:
        size = Image.open(io.BytesIO(content)).size
    except OSError:
        size = SHAPE[::-1]
    stream = io.BytesIO()
    Image.new("L", size, 1).save(stream, "PNG")
    return stream.getvalue()


def put_pairs(images, masks, contents):
    for k, content in enumerate(contents):
        put(images(k), content)
        put(masks(k), mask_of(content))


def folders(root, contents):
    for k, content in enumerate(contents):
        put(root / "train" / "ab"[k % 2] / f"{k}.png", content)
        put(root / "test" / "ab"[k % 2] / f"{k}.png", eight_bits())


def caltech101(root, contents):
    for k, content in enumerate(contents):
        put(root / "101_ObjectCategories" / "ab"[k % 2] / f"{k}.jpg", content)


def imagenet_folders(root, contents):
    for split in ("train", "val"):
        for k, content in enumerate(contents):
            put(root / split / f"n0000000{k % 2}" / f"{k}.JPEG", content)


def voc_masks(root, contents):
    for split, ids in (("train", "0123"), ("val", "45")):
        put(root / f"ImageSets/Segmentation/{split}.txt", "\n".join(ids).encode())
    put_pairs(
        lambda k: root / f"JPEGImages/{k}.png",
        lambda k: root / f"SegmentationClass/{k}.png",
        contents,
    )


def voc_classes(root, contents):
    for split, ids in (("train", "0123"), ("val", "45")):
        put(root / f"ImageSets/Main/{split}.txt", "\n".join(ids).encode())
    for k, content in enumerate(contents):
        put(root / f"JPEGImages/{k}.png", content)
        name = ("cat", "dog")[k % 2]
        objects = f"<annotation><object><name>{name}</name></object></annotation>"
        put(root / f"Annotations/{k}.xml", objects.encode())


def camvid(root, contents):
    for split in ("train", "val", "test"):
        put_pairs(
            lambda k, split=split: root / f"{split}/{k}.png",
            lambda k, split=split: root / f"{split}annot/{k}.png",
            contents,
        )


def cityscapes(root, contents):
    for split in ("train", "val"):
        put_pairs(
            lambda k, split=split: root / f"leftImg8bit/{split}/a/{k}_leftImg8bit.png",
            lambda k, split=split: root / f"gtFine/{split}/a/{k}_gtFine_labelIds.png",
            contents,
        )


def mask_folder(root, contents):
    put(root / "classes.csv", b"name,id\nground,0\ncell,1\n")
    put_pairs(lambda k: root / f"images/{k}.png", lambda k: root / f"masks/{k}.png", contents)


def parquet(root, contents):
    for split in ("train", "test"):
        cells = [{"bytes": content, "path": None} for content in contents]
        table = pa.table({"image": cells, "label": [k % 2 for k in range(len(contents))]})
        pq.write_table(table, root / f"{split}-0.parquet")


CASES = [
    ("folder", folders, {}),
    ("caltech101", caltech101, {}),
    ("imagenet", imagenet_folders, {}),
    ("voc", voc_masks, {}),
    ("voc", voc_classes, {"target": "classes"}),
    ("camvid", camvid, {}),
    ("cityscapes", cityscapes, {}),
    ("cityscapes", cityscapes, {"width": 64}),
    ("mask-folder", mask_folder, {}),
    ("parquet", parquet, {}),
    ("tiny-imagenet-32", parquet, {}),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("memory", [None, 0.0])
@pytest.mark.parametrize(("name", "write", "options"), CASES)
def test_options_that_are_advised_are_there(
    tmp_path, monkeypatch, name, write, options, memory, fault
):
    monkeypatch.setattr(caltech, "CLASSES", 2)
    monkeypatch.setattr(imagenet, "CLASSES", 2)
    write(tmp_path, [FAULTS[fault](k) for k in range(COUNT)])
    if memory is not None and "memory" in datasets.options(name):
        options = {**options, "memory": memory}
    with warnings.catch_warnings(record=True) as warned:
        try:
            splits = datasets.load(name, tmp_path, **options)
            told = list(splits.notes)
            splits.pool.inputs(range(len(splits.pool)))
        except (DataError, ConfigError) as error:
            told = [str(error)]
    advice = "\n".join([*told, *(str(one.message) for one in warned)])
    advised = {a or b for a, b in re.findall(r"`data\.(\w+)`|\bdata\.(\w+)=", advice)}
    assert advised <= {*datasets.options(name)}, advice


def test_every_reader_of_image_files_is_among_the_cases():
    others = {"hf", "webdataset", "coco"}  # their options are all that messages advise
    assert all({"mode", "size", "white"} <= {*datasets.options(name)} for name in others)
    readers = {n for n in datasets.REGISTRY if {"on_error", "mode"} & {*datasets.options(n)}}
    assert readers - others - {"subtomograms"} <= {name for name, *_ in CASES}
