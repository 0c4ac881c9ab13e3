"""IDX files."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from upslope import datasets
from upslope.datasets.idx import read_idx
from upslope.errors import DataError


def idx_bytes(array):
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 30), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 5, 4))
        labels = np.arange(count) % 10
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path


def test_gzipped_or_not(root):
    splits = datasets.load("mnist", root)
    expected = np.random.default_rng(0).integers(0, 256, (30, 5, 4))
    np.testing.assert_array_equal(splits.pool.inputs(range(30)).numpy()[:, 0], expected)
    assert splits.pool.targets([3, 12]).tolist() == [3, 2]
    assert splits.pool.ids[:2] == ("train-00000", "train-00001")
    assert splits.test.ids[0] == "test-00000"
    assert (len(splits.test), splits.pool.input_shape) == (20, (1, 5, 4))


def test_names_of_some_mirrors_and_named_classes(root):
    for path in list(root.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    splits = datasets.load("idx", root, classes=[f"c{i}" for i in range(10)])
    assert splits.pool.classes[9] == "c9"
    assert len(datasets.load("idx", root).pool.classes) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n", "89 50 4e 47"),
        (b"\0\0\x0d\x01\0\0\0\0", "IDX file of uint8"),
        (b"\0\0\x08\x03\0\0\0\x01", "header of 16 bytes"),
        (idx_bytes(np.zeros((3, 2, 2)))[:-1], r"Expected 12 values .* but got 11"),
        (idx_bytes(np.zeros((3, 2, 2))) + b"x", r"Expected 12 values .* but got 13"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_truncated_gzip(root):
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"whole gzip file in .*train-images"):
        datasets.load("mnist", root)


def test_missing_files_are_all_named_with_their_home(root):
    (root / "t10k-labels-idx1-ubyte").unlink()
    (root / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as error:
        datasets.load("fashion-mnist", root)
    text = str(error.value)
    assert "train-labels-idx1-ubyte, t10k-labels-idx1-ubyte" in text
    assert "zalandoresearch" in text
    assert "images-idx3" not in text


def test_swapped_files_labels_out_of_range_and_counts(root):
    labels = root / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.full(30, 10)))
    with pytest.raises(DataError, match=r"between 0 and 9 .* got 10 at 'train-00000'"):
        datasets.load("mnist", root)
    labels.write_bytes(idx_bytes(np.zeros(29)))
    with pytest.raises(DataError, match=r"each of the 30 images .* 29 labels"):
        datasets.load("mnist", root)
    labels.write_bytes(idx_bytes(np.zeros((30, 5, 4))))
    with pytest.raises(DataError, match=r"labels of 1 dimension\(s\)"):
        datasets.load("mnist", root)


@pytest.mark.data
def test_fashion_mnist_as_published():
    root = os.environ.get("UPSLOPE_DATA", "")
    if not Path(root, "fashion-mnist").is_dir():
        pytest.skip("UPSLOPE_DATA names no folder with fashion-mnist")
    splits = datasets.load("fashion-mnist", root)
    assert (len(splits.pool), len(splits.test)) == (60_000, 10_000)
    assert np.bincount(splits.pool.targets(range(60_000)).numpy()).tolist() == [6000] * 10
    values = splits.pool.inputs(range(60_000)).double() / 255
    assert splits.pool.mean[0] == pytest.approx(values.mean().item(), abs=5e-5)
    assert splits.pool.std[0] == pytest.approx(values.std().item(), abs=5e-5)


def test_numbers_from_0_that_no_sample_has_are_told(tmp_path):
    """As of the letters of EMNIST, which count from 1."""
    for split, n in (("train", 6), ("t10k", 3)):
        images, labels = np.zeros((n, 4, 4), np.uint8), np.arange(n, dtype=np.uint8) % 3 + 1
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    (note,) = datasets.load("idx", tmp_path).notes
    assert note.startswith("1 of 4 classes have no sample: 0. Labels count from 0")
    names = ["-", "a", "b", "c"]
    assert datasets.load("idx", tmp_path, classes=names).notes == ()
