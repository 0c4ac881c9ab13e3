"""SVHN, written with scipy.io.savemat as MATLAB writes it."""

import hashlib

import numpy as np
import pytest
from scipy.io import savemat

from upslope import datasets
from upslope.datasets import svhn
from upslope.errors import DataError


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 5)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(tmp_path / f"{name}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return tmp_path


def test_images_and_the_digit_zero(root):
    splits = datasets.load("svhn", root)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    np.testing.assert_array_equal(
        splits.pool.inputs([4])[0].numpy(), images[..., 4].transpose(2, 0, 1)
    )
    assert splits.pool.targets(range(12)).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert splits.pool.classes[0] == "0"
    assert len(splits.test) == 5


def test_bad_files(root):
    path = root / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"MATLAB 5 file in .*train_32x32\.mat"):
        datasets.load("svhn", root)
    savemat(path, {"digitStruct": np.zeros((1, 3))})
    with pytest.raises(DataError, match=r"X of shape \(32, 32, 3, n\).*neither"):
        datasets.load("svhn", root)
    path.unlink()
    with pytest.raises(DataError, match=r"files train_32x32\.mat in .*housenumbers"):
        datasets.load("svhn", root)


def test_the_published_checksum_is_checked(root, monkeypatch):
    path = root / "test_32x32.mat"
    monkeypatch.setitem(svhn.PUBLISHED_MD5, "test", (5, hashlib.md5(path.read_bytes()).hexdigest()))
    assert len(datasets.load("svhn", root).test) == 5
    monkeypatch.setitem(svhn.PUBLISHED_MD5, "test", (5, "0" * 32))
    with pytest.raises(DataError, match=r"test_32x32\.mat to have the published MD5 0{32}"):
        datasets.load("svhn", root)
