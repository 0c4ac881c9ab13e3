"""A label of -1 that was kept in an unsigned type, and became its largest number, is told."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from upslope import datasets
from upslope.datasets import Splits
from upslope.errors import DataError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def labels(kind="uint8", last=-1):
    values = np.arange(40) % 3
    values[7] = last
    return values.astype(kind)


def png(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def load(reader, folder, values):
    if reader == "arrays":
        return Splits.from_arrays(np.resize(X, (len(values), 3)), values, test_share=0.25)
    if reader == "npz":
        path = folder / "a.npz"
        x = np.resize(X, (len(values), 3))
        np.savez(path, x_train=x, y_train=values, x_test=X[:6] + 1, y_test=np.arange(6) % 3)
        return datasets.load("npz", root=path)
    for start, split in enumerate(("train", "test")):
        column = values if split == "train" else labels(last=0)
        images = [png(2 * i + start) for i in range(40)]
        table = pa.table({"image": images, "label": pa.array(column)})
        pq.write_table(table, folder / f"{split}.parquet")
    return datasets.load("parquet", root=folder)


@pytest.mark.parametrize("reader", ["arrays", "npz", "parquet"])
def test_a_wrapped_label_makes_no_256_classes(reader, tmp_path):
    with pytest.raises(DataError, match=r"but got 255, which -1, no label, becomes in uint8"):
        load(reader, tmp_path, labels())
    splits = load(reader, tmp_path, labels("int64"))
    assert splits.pool.classes == ("0", "1", "2")
    assert any("unlabelled" in note for note in splits.notes)


@pytest.mark.parametrize("reader", ["arrays", "npz", "parquet"])
def test_256_classes_are_such(reader, tmp_path):
    values = labels(last=255)
    values[8] = 254
    assert len(load(reader, tmp_path, values).pool.classes) == 256


@pytest.mark.parametrize("reader", ["arrays", "npz"])
def test_ids_in_the_place_of_class_numbers_are_told_or_refused(reader, tmp_path):
    """Of many samples too: three ids below the number of samples made as many classes as that."""
    notes = load(reader, tmp_path, labels("int64", last=30)).notes
    assert any("27 of 31 classes" in note and "where these are ids" in note for note in notes)
    many = np.resize(labels("int64", last=8000), 9000)
    with pytest.raises(DataError, match=r"but (got|the largest of .* is) 8,?000"):
        load(reader, tmp_path, many)


def test_class_numbers_of_parquet_that_no_sample_has_are_counted(tmp_path):
    notes = load("parquet", tmp_path, labels(last=5)).notes
    assert any("2 of 6 classes have no sample: '3', '4'" in note for note in notes)


def test_a_wrapped_label_of_a_table_is_pointed_at(tmp_path):
    pq.write_table(pa.table({"x": X[:, 0], "label": labels()}), tmp_path / "t.parquet")
    splits = datasets.load("table", root=tmp_path / "t.parquet")
    assert any("1 of 40 rows are of the class '255'" in note for note in splits.notes)


@pytest.mark.parametrize("first", ["small", "large", "none"])
def test_files_of_two_writers_and_without_rows_are_one_split(first, tmp_path):
    wide = pa.table({"image": pa.array([png(9)], pa.large_binary()), "label": [1]})
    narrow = pa.table({"image": [png(7)], "label": pa.array([0], pa.uint8())})
    none = pa.table({"image": pa.nulls(0), "label": pa.nulls(0)})
    files = {"small": (narrow, wide), "large": (wide, narrow), "none": (none, wide, narrow)}
    for split in ("train", "test"):
        for number, table in enumerate(files[first]):
            pq.write_table(table, tmp_path / f"{split}-{number}.parquet")
    splits = datasets.load("parquet", root=tmp_path)
    expected = {"small": [0, 1], "large": [1, 0], "none": [1, 0]}[first]
    assert splits.pool.labels.tolist() == expected
    levels = splits.pool.inputs([0, 1])[:, 0, 0, 0].tolist()
    assert levels == [9 if label else 7 for label in expected]


def test_the_largest_number_of_64_bits_is_not_taken_for_no_label(tmp_path):
    path, y = tmp_path / "a.npz", labels("int64").astype("uint64")
    y_test = np.arange(6) % 3
    np.savez(path, x_train=X, y_train=y, x_test=X[:6] + 1, y_test=y_test, classes=["a", "b", "c"])
    with pytest.raises(DataError, match="but got 18446744073709551615 at 'train-00007'"):
        datasets.load("npz", root=path)
