"""COCO instances: classes and masks against values drawn by hand, and files that are not sound."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.datasets.coco_json import read_instances
from upslope.datasets.outlines import fill_polygon, fill_runs, read_runs
from upslope.errors import ConfigError, DataError

CAT, DOG = 3, 8  # ids of categories, out of order with their places


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(image, category, segmentation=None, crowd=0):
    entry = {"image_id": image, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 1, 1]}
    return entry | ({} if segmentation is None else {"segmentation": segmentation})


def write(root, name, files, entries, folder="", **changes):
    """files: names of images, of 6 rows and 8 columns, with the ids 1, 2, ..."""
    for k, file in enumerate(files):
        path = root / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), 20 * k, np.uint8)).save(path)
    content = {
        "images": [
            {"id": i, "file_name": file, "height": 6, "width": 8} for i, file in enumerate(files, 1)
        ],
        "annotations": [{"id": i, **entry} for i, entry in enumerate(entries, 1)],
        "categories": [{"id": DOG, "name": "dog"}, {"id": CAT, "name": "cat"}],
    }
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def load(root, **options):
    return datasets.load("coco", root, **options)


def published(root, train, test):
    files = {part: [f"{part}{i}.png" for i in range(3)] for part in ("a", "b")}
    write(root, "annotations/instances_train2017.json", files["a"], train, "train2017")
    write(root, "annotations/instances_val2017.json", files["b"], test, "val2017")
    return root


def test_classes_are_the_categories_in_the_order_of_their_ids(tmp_path):
    train = [annotation(1, DOG), annotation(2, CAT), annotation(1, DOG), annotation(3, CAT)]
    test = [annotation(1, CAT), annotation(2, DOG), annotation(3, DOG)]
    splits = load(published(tmp_path, train, test))
    assert splits.pool.classes == ("cat", "dog")
    assert list(splits.pool.ids) == [f"train2017/a{i}.png" for i in range(3)]
    assert splits.pool.targets([0, 1, 2]).tolist() == [1, 0, 0]
    assert splits.test.targets([0, 1, 2]).tolist() == [0, 1, 1]
    assert int(splits.pool.inputs([2]).unique()) == 40


def test_images_of_several_categories_are_refused_or_left_out_and_counted(tmp_path):
    train = [annotation(1, DOG), annotation(1, CAT), annotation(2, CAT), annotation(3, DOG)]
    root = published(tmp_path, train, [annotation(1, CAT), annotation(2, DOG), annotation(3, CAT)])
    with pytest.raises(DataError, match=r"1 image of 6 .*'train2017/a0\.png' with cat, dog"):
        load(root)
    splits = load(root, several="skip")
    assert list(splits.pool.ids) == ["train2017/a1.png", "train2017/a2.png"]
    assert any(note.startswith("Left out 1 image of 6") for note in splits.notes)


def test_an_image_without_objects_is_unlabelled(tmp_path):
    test = [annotation(i, CAT) for i in (1, 2, 3)]
    splits = load(published(tmp_path, [annotation(1, DOG), annotation(3, CAT)], test))
    assert splits.pool.labels.tolist() == [1, -1, 0]
    assert any("first 'train2017/a1.png': unlabelled" in note for note in splits.notes)


def test_one_file_is_divided(tmp_path):
    files = [f"{i}.png" for i in range(10)]
    entries = [annotation(i, (CAT, DOG)[i % 2]) for i in range(1, 11)]
    write(tmp_path, "mine.json", files, entries, "images")
    splits = load(tmp_path, test_share=0.4)
    assert (len(splits.pool), len(splits.test)) == (6, 4)
    for part in (splits.pool, splits.test):
        for id_, label in zip(part.ids, part.targets(range(len(part))).tolist(), strict=True):
            assert label == (int(id_[len("images/") : -4]) + 1) % 2


def test_masks_are_polygons_and_runs_with_crowds_and_overlaps_ignored(tmp_path):
    train = [
        annotation(1, CAT, square(0, 0, 3)),
        annotation(1, DOG, square(2, 2, 3)),
        annotation(2, DOG, {"size": [6, 8], "counts": [1, 2, 45]}),
        annotation(3, CAT, {"size": [6, 8], "counts": [0, 6, 42]}, crowd=1),
        annotation(3, DOG, square(4, 0, 2)),
    ]
    test = [annotation(i, CAT, square(0, 0, 2)) for i in (1, 2, 3)]
    root = published(tmp_path, train, test)
    splits = load(root, target="masks")
    assert splits.pool.classes == ("background", "cat", "dog")
    masks = splits.pool.targets([0, 1, 2]).numpy()
    first = np.zeros((6, 8), int)
    first[0:3, 0:3] = 1
    first[2:5, 2:5] = 2
    first[2, 2] = 255
    np.testing.assert_array_equal(masks[0], first)
    second = np.zeros((6, 8), int)
    second[1:3, 0] = 2
    np.testing.assert_array_equal(masks[1], second)
    third = np.zeros((6, 8), int)
    third[:, 0] = 255
    third[0:2, 4:6] = 2
    np.testing.assert_array_equal(masks[2], third)
    told = " ".join(splits.notes)
    assert "1 object is a crowd" in told
    assert "2 images have objects of several categories" in told
    of_class = load(root, target="masks", crowd="class", memory=0.0)
    assert (of_class.pool.targets([2])[0, :, 0] == 1).all()
    resized = load(root, target="masks", size=3)  # rows 1, 3, 5 and columns 2, 4, 6
    np.testing.assert_array_equal(resized.pool.targets([0])[0], [[1, 0, 0], [2, 2, 0], [0, 0, 0]])


def test_boxes_make_no_masks_and_images_without_objects_are_told(tmp_path):
    good = [annotation(i, CAT, square(0, 0, 2)) for i in (1, 2, 3)]
    root = published(tmp_path, [*good, annotation(1, DOG)], good)
    with pytest.raises(DataError, match=r"1 object has a box alone, first in 'a0\.png'"):
        load(root, target="masks")
    root = published(tmp_path, good[:2], good)
    splits = load(root, target="masks")
    assert any("1 image has no objects: unlabelled" in note for note in splits.notes)
    with pytest.raises(DataError, match="annotator"):
        splits.pool.targets([2])
    assert not load(root, target="masks", empty="background").pool.targets([2]).any()


def crossings(polygon, x, y):
    """Whether a point is inside, by a ray upwards: the other direction than the code's."""
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (x0 > x) != (x1 > x) and y0 + (x - x0) / (x1 - x0) * (y1 - y0) < y:
            odd = not odd
    return odd


@pytest.mark.parametrize("seed", range(20))
def test_a_pixel_is_in_a_polygon_where_its_centre_is(seed):
    rng = np.random.default_rng(seed)
    polygon = rng.uniform(-5, 20, (int(rng.integers(3, 9)), 2))
    inside = fill_polygon(polygon, 12, 15)
    expected = [
        [crossings(polygon.tolist(), x + 0.5, y + 0.5) for x in range(15)] for y in range(12)
    ]
    np.testing.assert_array_equal(inside, expected)


def compress(counts):
    """COCO's text of run lengths, written from its description and by hand checked below."""
    text = ""
    for k, count in enumerate(counts):
        value = count - (counts[k - 2] if k > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def test_runs_go_down_the_columns():
    # 3 rows, 4 columns: two pixels outside, three inside, six outside, one inside.
    runs = read_runs({"size": [3, 4], "counts": [2, 3, 6, 1]}, 3, 4)
    np.testing.assert_array_equal(
        fill_runs(runs, 3, 4), np.array([[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]], bool)
    )
    # 2 -> "2", 3 -> "3", 6 -> "6", 1 - 3 = -2 -> 30 without more bits -> chr(78).
    assert compress([2, 3, 6, 1]) == "236N"
    assert read_runs({"size": [3, 4], "counts": "236N"}, 3, 4).tolist() == [2, 3, 6, 1]
    # 100 = 3 * 32 + 4: chr(48 + 4 + 32) and chr(48 + 3); 16 needs a second character for its sign.
    assert compress([100, 16]) == "T3`0"
    assert read_runs({"size": [4, 29], "counts": "T3`0"}, 4, 29).tolist() == [100, 16]


@pytest.mark.parametrize("seed", range(10))
def test_compressed_runs_are_read_as_they_were_written(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 10 ** int(rng.integers(1, 5)), int(rng.integers(1, 30))).tolist()
    read = read_runs({"size": [1, sum(counts)], "counts": compress(counts)}, 1, sum(counts))
    assert read.tolist() == counts


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [8, 6], "counts": [48]}, r"for the size \[8, 6\]"),
        ({"size": [6, 8], "counts": [47]}, "cover 47 of 48"),
        ({"size": [6, 8], "counts": [-1, 49]}, "no whole numbers"),
        ({"size": [6, 8], "counts": "\x10"}, "hold"),
        ({"size": [6, 8], "counts": "P" * 100}, "without end"),
        ({"size": [6, 8], "counts": "P"}, "end within a number"),
        ([[0, 0, 1, 1]], "three corners"),
        ([[0, 0, 1, 1, 2]], "three corners"),
        ([[0, 0, 1, 1, 2, float("nan")]], "no numbers"),
        ([[0, 0, 1, 1, 2, 1e30]], "no numbers"),
        ("cat", "neither polygons"),
    ],
)
def test_outlines_that_are_none_are_refused_by_their_annotation(tmp_path, segmentation, reason):
    path = write(tmp_path, "a.json", ["0.png"], [annotation(1, CAT, segmentation)])
    with pytest.raises(DataError, match=f"annotation 1.*{reason}"):
        read_instances(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annotations": None}, "no list of objects `annotations`"),
        ({"images": [{"id": 1, "file_name": "../0.png", "height": 6, "width": 8}]}, "leads out"),
        ({"images": [{"id": 1, "file_name": "C:\\0.png", "height": 6, "width": 8}]}, "leads out"),
        (
            {"images": [{"id": 1, "file_name": "a\\..\\..\\0.png", "height": 6, "width": 8}]},
            "leads out",
        ),
        (
            {
                "images": [
                    {"id": 1, "file_name": "a\\0.png", "height": 6, "width": 8},
                    {"id": 2, "file_name": "a/0.png", "height": 6, "width": 8},
                ]
            },
            "twice",
        ),
        ({"images": [{"id": 1, "file_name": "/0.png", "height": 6, "width": 8}]}, "leads out"),
        (
            {"images": [{"id": 1, "file_name": "0.png", "height": 0, "width": 8}]},
            "height and width",
        ),
        ({"images": [{"id": 1, "file_name": "0.png", "height": 2**40, "width": 8}]}, "height and"),
        ({"annotations": [{"id": 5, "image_id": 2, "category_id": CAT}]}, "image_id 2, which"),
        ({"annotations": [{"id": 5, "image_id": 1, "category_id": 4}]}, "category_id 4, which"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}, "twice"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]}, "twice"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, changes, reason):
    path = write(tmp_path, "a.json", ["0.png"], [], **changes)
    with pytest.raises(DataError, match=f"{reason}"):
        read_instances(path)


def test_backslashes_of_windows_are_folders(tmp_path):
    changes = {
        "images": [{"id": i, "file_name": f"a\\{i}.png", "height": 6, "width": 8} for i in (1, 2)]
    }
    files, entries = ["a/1.png", "a/2.png"], [annotation(1, CAT), annotation(2, DOG)]
    write(tmp_path, "a.json", files, entries, **changes)
    splits = load(tmp_path, images=".", annotations="a.json", test_annotations="a.json")
    assert [id_.removeprefix("a/") for id_ in splits.pool.ids] == ["1.png", "2.png"]


def test_json_that_is_none_or_too_large_is_refused(tmp_path):
    path = write(tmp_path, "a.json", ["0.png"], [annotation(1, CAT)])
    with pytest.raises(DataError, match=r"data\.read_limit"):
        load(tmp_path, read_limit=1e-6)
    for content in ("{", "[" * 100_000, "[]"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"COCO instances in .*a\.json"):
            load(tmp_path)


def test_images_that_are_missing_or_of_another_size_are_named(tmp_path):
    good = [annotation(i, CAT, square(0, 0, 2)) for i in (1, 2, 3)]
    root = published(tmp_path, good, good)
    Image.new("RGB", (6, 8)).save(root / "train2017/a1.png")
    with pytest.raises(DataError, match=r"a1\.png to have \(height, width\) = \(6, 8\)"):
        load(root, target="masks", size=4)
    (root / "train2017/a1.png").unlink()
    with pytest.raises(DataError, match=r"1 file is missing: 'a1\.png'"):
        load(root)
    with pytest.raises(DataError, match="no such file"):
        load(root, annotations="none.json")
    with pytest.raises(ConfigError, match=r"data\.annotations"):
        load(root, test_annotations="none.json")


def test_categories_must_be_the_same_in_both_files(tmp_path):
    root = published(tmp_path, [annotation(1, CAT)], [annotation(1, CAT)])
    names = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "cow"}]
    files = ["b0.png"]
    write(root, "annotations/instances_val2017.json", files, [], "val2017", categories=names)
    with pytest.raises(DataError, match=r"'cow', 'dog'"):
        load(root)


def test_two_names_of_one_image_are_refused(tmp_path):
    images = [
        {"id": i, "file_name": name, "height": 6, "width": 8}
        for i, name in enumerate(["a/1.png", "./a/1.png", "a/2.png"], 1)
    ]
    entries = [annotation(1, CAT), annotation(2, DOG), annotation(3, DOG)]
    write(tmp_path, "a.json", ["a/1.png", "a/2.png"], entries, images=images)
    with pytest.raises(DataError, match=r"the file_name 'a/1\.png' twice"):
        load(tmp_path, images=".")


@pytest.mark.parametrize("target", ["classes", "masks"])
def test_an_image_in_both_files_is_refused(tmp_path, target):
    files = ["1.png", "2.png", "3.png"]
    for part, category in (("train", CAT), ("val", DOG)):
        entries = [annotation(i, category, square(0, 0, 2)) for i in (1, 2, 3)]
        write(tmp_path, f"annotations/instances_{part}.json", files, entries)
        for file in files:
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / file).rename(tmp_path / "images" / file)
    with pytest.raises(DataError, match=r"3 images are in .*_train\.json and in .*_val\.json"):
        load(tmp_path, target=target)


def test_files_of_annotations_that_are_not_read_are_told(tmp_path):
    good = [annotation(i, CAT) for i in (1, 2, 3)]
    root = published(tmp_path, good, good)
    (root / "annotations/instances_minival.json").write_text("{}")
    assert "Left out 1 file: 'instances_minival.json'." in load(root).notes


def test_outlines_in_shares_of_the_image_are_refused(tmp_path):
    """All of them lay in the first pixel, and every mask was background."""
    entries = [annotation(i, CAT, square(0.1, 0.2, 0.5)) for i in range(1, 6)]
    write(tmp_path, "instances.json", [f"{i}.png" for i in range(5)], entries)
    with pytest.raises(DataError, match="shares of the image's sides"):
        load(tmp_path, target="masks")
    assert len(load(tmp_path).pool) == 4  # of classes, outlines say nothing


def test_objects_beside_their_images_are_counted(tmp_path):
    entries = [annotation(i, CAT, square(1, 1, 3)) for i in range(1, 6)]
    entries += [annotation(2, DOG, square(50, 1, 3)), annotation(3, DOG, square(1, -9, 3))]
    write(tmp_path, "instances.json", [f"{i}.png" for i in range(5)], entries)
    notes = load(tmp_path, target="masks").notes
    assert any("2 objects lie beside the image, first that of '1.png'" in note for note in notes)


@pytest.mark.parametrize("target", ["classes", "masks"])
def test_images_may_lie_beside_the_root(tmp_path, target):
    root, disk = tmp_path / "root", tmp_path / "disk"
    entries = [annotation(i, DOG if i % 2 else CAT, square(1, 1, 3)) for i in range(1, 11)]
    path = write(disk, "instances.json", [f"{i}.png" for i in range(10)], entries)
    root.mkdir()
    path.rename(root / "instances.json")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(disk / "other.png")
    ids = [f"../disk/{i}.png" for i in range(10)]
    for images in (str(disk), "../disk"):
        splits = load(root, target=target, images=images, duplicates="off")
        assert sorted([*splits.pool.ids, *splits.test.ids]) == ids
        assert splits.pool.inputs([0]).shape == (1, 3, 6, 8)
        assert "Left out 1 image that no annotations list: '../disk/other.png'." in splits.notes
