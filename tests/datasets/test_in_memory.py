"""Splits of arrays and tensors agree with those of files that hold the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from upslope import datasets
from upslope.datasets import Splits
from upslope.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 5))
Y = RNG.integers(0, 3, 30)
IMAGES = RNG.integers(0, 256, (30, 6, 7, 3), dtype=np.uint8)
WORDS = np.array(["cat", "dog", "bird"])


def same(one, other):
    assert one.classes == other.classes
    assert one.input_shape == other.input_shape
    everything = range(len(one))
    assert torch.equal(one.inputs(everything), other.inputs(everything))
    assert torch.equal(one.targets(everything), other.targets(everything))


@pytest.mark.parametrize("inputs", [X, X.astype(np.float32), IMAGES, IMAGES[..., 0]])
def test_arrays_are_read_as_a_file_of_them_is(inputs, tmp_path):
    np.savez(
        tmp_path / "a.npz",
        x_train=inputs[:20], y_train=Y[:20], x_test=inputs[20:], y_test=Y[20:],
    )  # fmt: skip
    of_file = datasets.load("npz", tmp_path)
    given = Splits.from_arrays(inputs[:20], Y[:20], inputs[20:], Y[20:])
    same(given.pool, of_file.pool)
    same(given.test, of_file.test)


def test_tensors_are_taken_as_they_are():
    x = torch.randn(30, 3, 4, 3)
    splits = Splits.from_arrays(x, torch.tensor(Y), test_share=0.2)
    assert splits.pool.input_shape == (3, 4, 3)
    assert len(splits.test) == 6
    assert not set(splits.pool.ids) & set(splits.test.ids)
    place = int(splits.test.ids[2].removeprefix("pool-"))
    assert torch.equal(splits.test.inputs([2])[0], x[place])
    assert splits.test.targets([2]) == Y[place]
    half = Splits.from_arrays(x.bfloat16(), Y)
    assert torch.equal(half.pool.inputs([4])[0], x.bfloat16().float()[4])
    last = Splits.from_arrays(torch.tensor(IMAGES), Y, layout="channels-last")
    assert torch.equal(last.pool.inputs([0])[0], torch.tensor(IMAGES[0]).permute(2, 0, 1))


@pytest.mark.parametrize(
    "targets",
    [
        WORDS[Y],
        WORDS[Y].tolist(),
        WORDS[Y].astype(object),
        [None if i == 4 else str(word) for i, word in enumerate(WORDS[Y])],
    ],
)
def test_classes_by_name(targets):
    splits = Splits.from_arrays(X, targets, ids=range(100, 130))
    assert splits.pool.classes == ("bird", "cat", "dog")
    assert splits.pool.ids[:2] == ("100", "101")
    for i, target in enumerate(targets):
        if target is None:
            with pytest.raises(DataError, match="'104'"):
                splits.pool.targets([i])
            assert "1 of 30 samples are unlabelled" in str(splits)
        else:
            assert splits.pool.classes[int(splits.pool.targets([i]))] == target


def test_a_pool_without_labels():
    splits = Splits.from_arrays(X, classes=["cat", "dog"])
    assert splits.pool.classes == ("cat", "dog")
    assert len(splits.test) == 0
    assert datasets.wants_people(splits.pool)


def test_numbers_label_sets_and_masks():
    prices = RNG.normal(size=30)
    prices[3] = np.nan
    numbers = Splits.from_arrays(X, prices, kind="numbers", classes=["price"])
    assert numbers.pool.classes == ("price",)
    assert torch.equal(numbers.pool.targets([0, 2]), torch.tensor(prices[[0, 2], None]).float())
    assert numbers.pool.labels[3] == -1
    sets = RNG.integers(0, 2, (30, 4))
    labels = Splits.from_arrays(X, sets, kind="labels", classes=list("abcd"))
    assert torch.equal(labels.pool.targets(range(30)), torch.tensor(sets))
    masks = RNG.integers(0, 3, (30, 6, 7))
    masks[0, 0, 0] = 255
    segmented = Splits.from_arrays(IMAGES, masks, kind="masks")
    assert segmented.pool.classes == ("0", "1", "2")
    assert torch.equal(segmented.pool.targets(range(30)), torch.tensor(masks).byte())


def test_a_memory_map_is_not_read_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    splits = Splits.from_arrays(mapped, Y)
    assert np.shares_memory(splits.pool.images, mapped)
    assert torch.equal(splits.pool.inputs([3])[0], torch.tensor(X[3]).float())


def test_samples_that_are_there_twice_are_told():
    splits = Splits.from_arrays(X[:20], Y[:20], X[10:], Y[10:])
    assert any("10 of 20 test samples have the same inputs" in note for note in splits.notes)


NAN = np.where(np.arange(30)[:, None] == 7, np.nan, X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Splits.from_arrays(X), DataError, "or `classes`, the names"),
        (lambda: Splits.from_arrays(X, Y[:9]), DataError, "each of the 30 .* got 9"),
        (lambda: Splits.from_arrays(X, X[:, 0]), DataError, "set kind='numbers'"),
        (lambda: Splits.from_arrays(X, np.eye(3)[Y]), DataError, r"become classes by argmax\(1\)"),
        (lambda: Splits.from_arrays(X, Y - 2), DataError, "-1 where nobody knows"),
        (lambda: Splits.from_arrays(X, Y, classes=["a", "b"]), DataError, "0 and 1 .* got 2"),
        (lambda: Splits.from_arrays(X, Y, classes=list("123")), DataError, "a name or a position"),
        (lambda: Splits.from_arrays(X, Y, classes=["a", "a"]), ConfigError, "distinct"),
        (lambda: Splits.from_arrays(X, ["a", 1] * 15), DataError, "of one type"),
        (lambda: Splits.from_arrays(NAN, Y), DataError, "NaN or infinity"),
        (lambda: Splits.from_arrays(X.astype(int), Y), DataError, "uint8 .* int64"),
        (lambda: Splits.from_arrays([["a"]] * 30, Y), DataError, "Splits.from_table"),
        (lambda: Splits.from_arrays([[1.0], [1.0, 2.0]], Y), DataError, "equal shapes"),
        (lambda: Splits.from_arrays(IMAGES[..., :2], Y), ConfigError, "`layout`"),
        (lambda: Splits.from_arrays(X, Y, X[:, :2], Y), DataError, r"\(5,\) .* \(2,\)"),
        (lambda: Splits.from_arrays(X, Y, X, Y - 1), DataError, "target for every sample"),
        (lambda: Splits.from_arrays(X, Y, test_targets=Y), ConfigError, "`test_inputs`"),
        (lambda: Splits.from_arrays(X, Y, X, Y, test_share=0.1), ConfigError, "beside a test set"),
        (lambda: Splits.from_arrays(X, Y, ids=[1] * 30), DataError, "'1' comes twice"),
        (lambda: Splits.from_arrays(X, Y, ids=[1, 2]), DataError, "30 samples .* got 2"),
        (lambda: Splits.from_arrays(X, Y, ids=X[:, 0]), DataError, "text or whole numbers"),
        (lambda: Splits.from_arrays(X, Y, kind="labels"), DataError, "label sets .* 0 and 1"),
        (lambda: Splits.from_arrays(X, Y, kind="sets"), ConfigError, "`kind`"),
        (lambda: Splits.from_arrays(IMAGES, np.zeros((30, 5, 7), int), kind="masks"),
         DataError, "height and width"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "data." not in re.sub(r"data\.?set", "", str(caught.value))


def test_the_example_of_the_page_on_data_runs(capsys):
    page = Path(__file__).parents[2] / "docs" / "data.md"
    (code,) = re.findall(
        r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    exec(compile(code, "data.md", "exec"), {})
    assert "pool: 45" in capsys.readouterr().out


def _columns_with_nulls():
    names, numbers = ["a", "b", None] * 4, [0, 1, None] * 4
    yield pa.array(names)
    yield pa.array(numbers)
    yield pa.chunked_array([numbers[:6], numbers[6:]])
    yield pa.array(names).dictionary_encode()
    pandas = pytest.importorskip("pandas")
    yield pandas.array(names, dtype="string")
    yield pandas.Series(numbers, dtype="Int64")
    polars = pytest.importorskip("polars")
    yield polars.Series(names)
    yield polars.Series(numbers)


def test_nulls_of_columns_are_labels_that_nobody_knows():
    x = np.arange(36, dtype=np.float32).reshape(12, 3)
    for column in _columns_with_nulls():
        splits = Splits.from_arrays(x, column, test_share=0.25)
        labels = {
            id_: label
            for part in (splits.pool, splits.test)
            for id_, label in zip(part.ids, part.labels.tolist(), strict=True)
        }
        assert [labels[id_] for id_ in sorted(labels)] == [0, 1, -1] * 4
    numbers = Splits.from_arrays(x, pa.array([1.5, None] * 6), kind="numbers", test_share=0.25)
    assert sum(label == -1 for label in numbers.pool.labels) == 6


@pytest.mark.parametrize("classes", [None, ["ground", "cell"]])
def test_masks_of_black_and_white_are_refused(classes):
    """All pixels of the second class would have counted nowhere."""
    images = np.zeros((10, 3, 4, 4), np.uint8)
    masks = np.zeros((10, 4, 4), np.uint8)
    masks[:, 1] = 255
    options = {"kind": "masks", "classes": classes, "test_share": 0.2}
    with pytest.raises(DataError, match=r"hold 0 and 255 alone, .* make it 1\."):
        Splits.from_arrays(images, masks, **options)
    masks[0, 0, 0] = 1
    assert len(Splits.from_arrays(images, masks, **options).pool) == 8
    Splits.from_arrays(images, masks // 255, **options)
