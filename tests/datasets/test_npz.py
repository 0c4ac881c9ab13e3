"""NumPy archives."""

import numpy as np
import pytest

from upslope import datasets
from upslope.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 5, 6, 3), dtype=np.uint8)


def save(path, **changes):
    arrays = {
        "x_train": IMAGES[:5],
        "y_train": np.array([0, 1, 2, 1, 0]),
        "x_test": IMAGES[5:],
        "y_test": np.array([[0], [2], [1]]),
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


def test_keras_names_and_channels_last(tmp_path):
    save(tmp_path / "a.npz", classes=np.array(["x", "y", "z"]))
    splits = datasets.load("npz", tmp_path)
    np.testing.assert_array_equal(
        splits.pool.inputs(range(5)).numpy(), IMAGES[:5].transpose(0, 3, 1, 2)
    )
    assert splits.test.targets(range(3)).tolist() == [0, 2, 1]
    assert splits.pool.classes == ("x", "y", "z")
    assert datasets.load("npz", tmp_path / "a.npz").pool.ids == splits.pool.ids


def test_split_column_with_ids_and_float_features(tmp_path):
    features = RNG.normal(size=(4, 7))
    split, ids = np.array(["train", "test", "train", "train"]), np.array(["a", "b", "c", "d"])
    np.savez(
        tmp_path / "f.npz", images=features, labels=np.array([0, 1, 1, -1]), split=split, ids=ids
    )
    splits = datasets.load("npz", tmp_path)
    assert splits.pool.ids == ["a", "c", "d"]
    np.testing.assert_allclose(splits.pool.inputs([1])[0], features[2].astype(np.float32))
    assert datasets.statistics(splits.pool) == ((), ())
    with pytest.raises(DataError, match="label for 'd'"):
        splits.pool.targets([2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "Expected the arrays x_train"),
        ({"y_train": np.array([0.5] * 5)}, "integer label"),
        ({"y_train": np.zeros(4, int)}, "each of the 5 images .* 4 labels"),
        ({"y_train": np.array([0, 1, -2, 1, 0])}, "got -2 at 'train-00002'"),
        ({"y_train": np.array([0, 1, 3, 1, 0]), "classes": np.array(["a", "b"])}, "0 and 1"),
        ({"x_train": IMAGES[:5].astype(int)}, "uint8 .*got int64"),
        ({"x_train": np.full((5, 5, 6, 3), np.nan)}, "finite numbers .* 5 of 5"),
        ({"x_train": np.array([object()] * 5)}, "plain arrays"),
        ({"x_train": IMAGES[:5, :4]}, "one shape and type"),
        ({"x_train": IMAGES[:0], "y_train": np.zeros(0, int)}, "at least one sample"),
        ({"y_test": np.array([0, -1, 1])}, "test sample to have a label"),
    ],
)
def test_arrays_that_cannot_serve(tmp_path, changes, message):
    save(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=message):
        datasets.load("npz", tmp_path)


def test_layout_must_be_told_where_it_is_open(tmp_path):
    images = np.zeros((5, 3, 8, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", x_train=images, x_test=images[:3])
    with pytest.raises(ConfigError, match="Set `layout`"):
        datasets.load("npz", tmp_path)
    shape = datasets.load("npz", tmp_path, layout="channels-last").pool.input_shape
    assert shape == (3, 3, 8)


def test_files_that_are_no_archive(tmp_path):
    with pytest.raises(DataError, match=r"one \.npz file"):
        datasets.load("npz", tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 not whole")
    with pytest.raises(DataError, match="reading it failed"):
        datasets.load("npz", tmp_path)
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match="single array"):
        datasets.load("npz", tmp_path)
