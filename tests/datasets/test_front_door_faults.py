"""What a program hands over in a form that would be misread: refused, or told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from upslope import Splits
from upslope.errors import ConfigError, DataError

X = np.random.default_rng(0).random((12, 3, 4, 4)).astype(np.float32)
Y = np.arange(12) % 3


class Named(torch.utils.data.Dataset):
    def __init__(self, inputs, targets, classes):
        self.inputs, self.targets, self.classes = inputs, targets, classes

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i], int(self.targets[i])


@pytest.mark.parametrize("names", [["b", "a", "c"], ["a", "b", "d"]])
def test_classes_of_the_test_set_in_another_order_are_refused(names):
    pool = Named(X, Y, ["a", "b", "c"])
    assert len(Splits.from_torch(pool, Named(X[:4] / 2, Y[:4], ["a", "b", "c"])).test) == 4
    with pytest.raises(DataError, match="classes of the pool in its order"):
        Splits.from_torch(pool, Named(X[:4] / 2, Y[:4], names))


def test_entries_under_a_mask_are_no_data():
    mask = np.zeros(X.shape, dtype=bool)
    whole = Splits.from_arrays(np.ma.array(X, mask=mask), Y)
    np.testing.assert_array_equal(whole.pool.inputs(range(12)).numpy(), X)
    mask[2, 0] = True
    with pytest.raises(DataError, match="16 entries are masked"):
        Splits.from_arrays(np.ma.array(X, mask=mask), Y)
    with pytest.raises(DataError, match="1 entries are masked"):
        Splits.from_arrays(X, np.ma.array(Y, mask=np.arange(12) == 5))


def test_names_of_classes_in_one_text_are_refused():
    with pytest.raises(ConfigError, match=r"\['cat', 'dog'\]"):
        Splits.from_arrays(X, Y % 2, classes="cat,dog")
    with pytest.raises(ConfigError, match="list of names"):
        Splits.from_arrays(X, kind="labels", classes="ab")


def test_ids_in_place_of_classes_are_refused():
    with pytest.raises(DataError, match="largest of 12 targets is 1,000,000"):
        Splits.from_arrays(X, np.where(Y, Y, 10**6))
    with pytest.raises(DataError, match="largest of 12 targets is"):
        Splits.from_arrays(X, np.where(Y, Y, 2**64 - 1).astype(np.uint64))
    few = Splits.from_arrays(X, np.where(Y, Y, 999))
    assert len(few.pool.classes) == 1000


def test_classes_may_be_any_numbers_as_text_before_there_are_labels():
    assert Splits.from_arrays(X, classes=["2", "1", "0"]).pool.classes == ("2", "1", "0")


def test_label_sets_known_in_part_are_counted():
    sets = np.array([[0, 1], [1, 0], [-1, 1], [-1, -1]] * 3)
    notes = Splits.from_arrays(X, sets, kind="labels").notes
    assert any(note.startswith("6 of 12") for note in notes)
    assert any(note.startswith("3 of 12 samples have some of their 2 targets") for note in notes)


def test_a_share_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match=r"got '0\.2'"):
        Splits.from_arrays(X, Y, test_share="0.2")


@pytest.mark.parametrize("kind", ["Categorical", "Enum"])
def test_categories_of_polars_are_names(kind):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    names = ["x", "y", "x", "y"]
    dtype = polars.Categorical if kind == "Categorical" else polars.Enum(["x", "y"])
    frame = polars.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "k": names})
    splits = Splits.from_table(frame.with_columns(polars.col("k").cast(dtype)), frame, target="k")
    assert splits.pool.classes == ("x", "y")
    assert splits.pool.targets(range(4)).tolist() == [0, 1, 0, 1]


def test_an_index_that_cannot_be_ids_is_told():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "k": ["x", "y", "x", "y"]})
    assert not any("index" in note for note in Splits.from_table(frame, frame, target="k").notes)
    levels = frame.set_index([["m", "m", "n", "n"], [0, 1, 0, 1]])
    with_ids = frame.assign(id=list("pqrs")).set_axis([7, 8, 9, 10])
    for other in (levels, with_ids):
        notes = Splits.from_table(other, target="k", test_share=0.5).notes
        assert any("index of the table is left out" in note for note in notes)


def hugging_face_library():
    library = pytest.importorskip("datasets", reason="datasets is not installed")
    if not hasattr(library, "Features"):  # a folder of that name on the path
        pytest.skip("datasets is not installed")
    return library


def hugging_face(images, labels):
    datasets = hugging_face_library()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["c", "b", "a"])}
    )
    pictures = [Image.fromarray(image) for image in images]
    columns = {"image": pictures, "label": [int(label) for label in labels]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_splits_that_are_not_read_are_told_and_tests_have_labels():
    images = np.random.default_rng(1).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    whole = hugging_face(images, Y)
    unlabelled = hugging_face(images // 3, [-1] * 12)
    test = hugging_face(images // 2, Y)
    splits = Splits.from_hugging_face({"train": whole, "test": test, "extra": unlabelled})
    assert "Left out 1 split: extra (12 rows)." in splits.notes
    with pytest.raises(DataError, match="12 of 12 have none"):
        Splits.from_hugging_face({"train": whole, "test": unlabelled})
    half = hugging_face(images, np.where(np.arange(12) % 2, -1, Y))
    drawn = Splits.from_hugging_face(half, test_share=0.5)
    assert len(drawn.test) == 3
    assert (drawn.test.targets(range(3)) >= 0).all()


def test_numbers_of_texts_below_zero_are_no_class():
    datasets = hugging_face_library()
    rows = {"text": list("abcd"), "label": [0, 1, -1, 1]}
    test = {"text": list("ef"), "label": [0, 1]}
    parts = {"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(test)}
    splits = Splits.from_hugging_face(parts, text="text")
    assert splits.pool.classes == ("0", "1")


def test_images_that_annotations_do_not_list_are_told(tmp_path):
    rng = np.random.default_rng(2)
    (tmp_path / "images").mkdir()
    for i in range(6):
        image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{i}.png")
    listed = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in range(5)]
    objects = [
        {"id": i, "image_id": i, "category_id": i % 2, "bbox": [1, 1, 4, 4], "iscrowd": 0}
        for i in range(5)
    ]
    classes = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    document = {"images": listed, "annotations": objects, "categories": classes}
    (tmp_path / "all.json").write_text(json.dumps(document))
    from upslope import datasets

    notes = datasets.load("coco", tmp_path).notes
    assert "Left out 1 image that no annotations list: 'images/5.png'." in notes
    document["images"] = [{**listed[0], "file_name": "gone.png"}, *listed[1:]]
    (tmp_path / "all.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"images but 1 file is missing: 'gone\.png'"):
        datasets.load("coco", tmp_path)
