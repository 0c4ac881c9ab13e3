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
    with pytest.raises(ConfigError, match=r"Set `data.layout`"):
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


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((16, 16, 16, 1), "auto", (1, 16, 16, 16)),
        ((16, 16, 16, 1), "channels-last", (1, 16, 16, 16)),
        ((16, 16, 16, 1), "channels-first", (16, 16, 16, 1)),
        ((1, 16, 12, 14), "auto", (1, 16, 12, 14)),
        ((3, 4, 5, 6), "auto", (3, 4, 5, 6)),
        ((4, 5, 6, 3), "auto", (3, 4, 5, 6)),
        ((2, 5, 6, 7), "channels-first", (2, 5, 6, 7)),
        ((5, 6, 7, 2), "channels-last", (2, 5, 6, 7)),
        ((4, 5, 2), "channels-last", (2, 4, 5)),
        ((3, 4, 5, 6, 7), "auto", (3, 4, 5, 6, 7)),
    ],
)
def test_channels_come_first(tmp_path, kind, shape, layout, expected):
    x = RNG.integers(0, 256, (8, *shape)).astype(kind)
    save(tmp_path / "a.npz", x_train=x[:5], x_test=x[5:])
    pool = datasets.load("npz", tmp_path, layout=layout).pool
    assert pool.input_shape == expected
    moved = expected if shape == expected else None
    np.testing.assert_array_equal(pool.inputs([2])[0], x[2] if moved else np.moveaxis(x[2], -1, 0))


def test_sequences(tmp_path):
    x = RNG.normal(size=(8, 4, 9)).astype(np.float32)
    save(tmp_path / "a.npz", x_train=x[:5], x_test=x[5:])
    for layout, expected in (("auto", x[1]), ("channels-first", x[1]), ("channels-last", x[1].T)):
        pool = datasets.load("npz", tmp_path, layout=layout).pool
        np.testing.assert_array_equal(pool.inputs([1])[0], expected)


@pytest.mark.parametrize(
    ("x", "layout", "message"),
    [
        (np.zeros((8, 16, 16, 16), np.float32), "auto", r"add a dimension: x\[:, None\]"),
        (np.zeros((8, 2, 16, 16, 16), np.float32), "auto", "1 or 3 channels either"),
        (np.zeros((8, 1, 16, 16, 1), np.float32), "auto", "1 or 3 channels either"),
        (np.zeros((8, 3, 4, 5, 3), np.uint8), "auto", "1 or 3 channels either"),
        (np.zeros((8, 28, 28), np.uint8), "channels-last", r"grey images \(n, h, w\)"),
        (np.zeros((8, 28), np.float32), "channels-first", r"features \(n, d\)"),
        (np.zeros((8, 28), np.uint8), "channels-last", r"features \(n, d\)"),
    ],
)
def test_shapes_with_two_meanings_are_refused(tmp_path, x, layout, message):
    save(tmp_path / "a.npz", x_train=x[:5], x_test=x[5:])
    with pytest.raises(ConfigError, match=message):
        datasets.load("npz", tmp_path, layout=layout)


def test_names_and_ids_are_text_whatever_their_type(tmp_path):
    split = np.array([b"train", b"test", b"train", b"train"])
    arrays = {"images": IMAGES[:4], "labels": np.array([0, 1, 1, 0]), "split": split}
    names = np.array(["Käfer".encode(), b"Biene"])
    np.savez(tmp_path / "a.npz", **arrays, ids=np.array([7, 12, 2**53 + 1, 9]), classes=names)
    splits = datasets.load("npz", tmp_path)
    assert list(splits.pool.ids) == ["7", str(2**53 + 1), "9"]
    assert splits.pool.classes == ("Käfer", "Biene")
    np.savez(tmp_path / "a.npz", **arrays, ids=np.array([0.5, 1, 2, 3]))
    with pytest.raises(DataError, match=r"`ids` in .* float64"):
        datasets.load("npz", tmp_path)


def test_what_is_not_read_is_told(tmp_path):
    save(
        tmp_path / "a.npz",
        x_val=IMAGES[:2],
        y_train=np.array([1, 2, -1, -1, 1]),
        y_test=np.array([1, 2, 4]),
    )
    assert datasets.load("npz", tmp_path).notes == (
        "Left out 1 array not among x_train, y_train, x_test, y_test, classes: 'x_val' "
        "(2, 5, 6, 3).",
        "2 of 8 samples are unlabelled: their label is -1.",
        "2 of 5 classes have no sample: 0, 3. Labels count from 0: subtract 1 from labels that "
        "begin at 1.",
    )


@pytest.mark.parametrize("names", [["a", "a"], ["a", ""], ["a", " "]])
def test_classes_that_are_not_distinct_names_are_refused(tmp_path, names):
    x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y, classes=np.array(names))
    with pytest.raises(DataError, match=r"`classes` in .* to be distinct names"):
        datasets.load("npz", tmp_path / "a.npz")
