"""Caltech-101, laid out as its archive unpacks."""

import shutil

import pytest
from PIL import Image

from upslope import datasets
from upslope.errors import DataError


def test_published_layout(tmp_path):
    folder = tmp_path / "101_ObjectCategories"
    for k, name in enumerate(["BACKGROUND_Google", *(f"kind{i:03d}" for i in range(101))]):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            size = (12 + i, 9)
            Image.new("L" if i == 2 else "RGB", size).save(folder / name / f"image_{k}_{i}.jpg")
    splits = datasets.load("caltech101", tmp_path, size=8)
    assert (len(splits.pool), len(splits.test)) == (404, 101)
    assert sorted(splits.test.labels) == list(range(101))
    assert splits.pool.input_shape == (3, 8, 8)
    assert splits.pool.ids[0].startswith("kind000/image_1_")
    assert datasets.load("caltech101", folder, size=8).test.ids == splits.test.ids
    shutil.rmtree(folder / "kind007")
    with pytest.raises(DataError, match=r"Expected 101 classes in .* got 100"):
        datasets.load("caltech101", tmp_path)
    with pytest.raises(DataError, match=r"101_ObjectCategories in .*data\.caltech\.edu"):
        datasets.load("caltech101", folder / "kind001")
