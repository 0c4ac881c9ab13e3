"""Numbers that single precision, or a column of whole numbers, cannot hold are told."""

from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from upslope import datasets
from upslope.datasets import Splits
from upslope.datasets.pools import as_pool
from upslope.errors import DataError
from upslope.pools import open_pool

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
COLUMNS = {"a": X[:, 0], "b": X[:, 1]}


@pytest.mark.parametrize("value", [1e39, -1e300, np.inf, 10**400])
def test_targets_that_would_become_infinite_are_refused(value):
    targets = [float(i) for i in range(40)]
    targets[7] = value
    with pytest.raises(DataError, match=r"row 7|too large|one type each"):
        Splits.from_arrays(X, targets, test_share=0.25, kind="numbers")
    with pytest.raises(DataError, match=r"row 7|too large|one type each"):
        Splits.from_table({**COLUMNS, "y": targets}, target="y", kind="numbers")


@pytest.mark.parametrize("first", [2**53, 2**60, 10**20])
def test_whole_numbers_that_floats_make_one_are_refused(first):
    """As targets that differ in their last digit alone."""
    targets = [first + i % 2 for i in range(40)]
    with pytest.raises(DataError, match=r"tells apart but some|2 numbers are 1 so"):
        Splits.from_arrays(X, targets, test_share=0.25, kind="numbers")


def test_the_largest_numbers_are_taken():
    largest = float(np.finfo(np.float32).max)
    splits = Splits.from_table({**COLUMNS, "y": [largest] * 40}, target="y", kind="numbers")
    assert splits.pool.targets([0]).item() == largest


@pytest.mark.parametrize("first", [1e9, -1e9, 2**60, 1.7e12])
@pytest.mark.parametrize("step", [1, 0.25])
def test_targets_far_from_zero_that_single_precision_makes_one_are_refused(first, step):
    """Seconds since 1970, or ids: all of them became one number, without a word."""
    targets = [first + i * step for i in range(40)]
    with pytest.raises(DataError, match="tells apart but some with mean"):
        Splits.from_arrays(X, targets, test_share=0.25, kind="numbers")
    with pytest.raises(DataError, match="tells apart but some with mean"):
        Splits.from_table({**COLUMNS, "y": targets}, target="y", kind="numbers")


@pytest.mark.parametrize(("first", "step"), [(2023.0, 0.1), (1e6, 10), (5.0, 0), (1e9, 1e5)])
def test_targets_whose_digits_count_are_taken(first, step):
    targets = [first + i * step for i in range(40)]
    splits = Splits.from_arrays(X, targets, test_share=0.25, kind="numbers")
    assert len(splits.pool) == 30


def test_whole_numbers_beyond_64_bits_are_no_classes():
    with pytest.raises(DataError, match="of one type but"):
        Splits.from_arrays(X, [10**20, 1] * 20, test_share=0.25)
    with pytest.raises(DataError, match="one type each"):
        Splits.from_table({**COLUMNS, "y": [10**20, 1] * 20}, target="y")


def write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("first", [2**53, 2**60, -(2**60)])
def test_whole_numbers_in_lists_are_exact(first, tmp_path):
    lists = [[first + i, i % 3] for i in range(40)]
    rows = [{"x": x, "label": "ab"[i % 2]} for i, x in enumerate(lists)]
    splits = datasets.load("table", root=write_lines(tmp_path / "t.jsonl", rows))
    frame = Splits.from_table({"x": lists, "label": ["a", "b"] * 20})
    for inputs in (one.pool.inputs(range(32)) for one in (splits, frame)):
        assert [len(place.unique()) for place in inputs.T] == [32, 3]


@pytest.mark.parametrize("first", [2**64, 2**70, -(10**75)])
def test_whole_numbers_of_json_beyond_64_bits_are_exact(first, tmp_path):
    """They became floats, and inputs that differ in their last digits became one."""
    rows = [{"x": first + i if i % 3 else None, "label": "ab"[i % 2]} for i in range(40)]
    path = write_lines(tmp_path / "t.jsonl", rows)
    pool = datasets.load("table", root=path, missing="fill", test_share=0.1).pool
    assert len(pool.inputs(range(36))[:, 0].unique()) > 20
    with pytest.raises(DataError, match="has more than 76 digits"):
        datasets.load("table", root=write_lines(path, [{"x": 10**76}, {"x": 1}]))
    with pytest.raises(DataError, match="is beside whole numbers beyond 64 bits"):
        datasets.load("table", root=write_lines(path, [{"x": [2**70]}, {"x": None}]))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_targets_beyond_64_bits_that_floats_make_one_are_refused(ending, tmp_path):
    targets = [2**65 + i for i in range(40)]
    path = tmp_path / f"t.{ending}"
    if ending == "csv":
        path.write_text("x,label\n" + "\n".join(f"{i},{t}" for i, t in enumerate(targets)))
    else:
        pq.write_table(pa.table({"x": X[:, 0], "label": list(map(Decimal, targets))}), path)
    with pytest.raises(DataError, match=r"40 numbers are 1 so, near 3\.68934"):
        datasets.load("table", root=path, kind="numbers")


@pytest.mark.parametrize("reader", ["arrays", "torch", "streamed", "pool", "npz", "shards"])
def test_inputs_far_from_zero_are_told_to_lose_digits(reader, tmp_path):
    """Seconds since 1970 became one number for all samples of an hour, without a word."""
    inputs = np.concatenate([X[:, :2].astype(np.float64), 1.7e9 + np.arange(40)[:, None]], axis=1)

    def read(inputs):
        if reader == "arrays":
            return Splits.from_arrays(inputs, np.arange(40) % 2, test_share=0.25)
        if reader in ("torch", "streamed"):
            items = [(torch.from_numpy(row), i % 2) for i, row in enumerate(inputs)]
            return Splits.from_torch(items, test_share=0.25, memory=4 if reader == "torch" else 0)
        if reader == "pool":
            return as_pool([(row, 0) for row in inputs])
        if reader == "npz":
            labels = np.arange(40) % 2
            np.savez(tmp_path / "a.npz", x_train=inputs, y_train=labels, x_test=inputs[:6] + 0.5,
                     y_test=labels[:6])  # fmt: skip
            return datasets.load("npz", root=tmp_path / "a.npz")
        pq.write_table(pa.table({"features": inputs.tolist()}), tmp_path / "a.parquet")
        return open_pool(str(tmp_path))

    with pytest.warns(UserWarning, match=r"moves 1 of 3 numbers .* first number 2 \(mean 1\.7e"):
        read(inputs)
    read(inputs - inputs.mean(axis=0))  # warnings are errors here
    read(inputs * 0 + 0.1 + 1e-17 * inputs)


def test_fractions_in_lines_far_from_whole_numbers_beyond_64_bits_are_no_less_refused(tmp_path):
    """Read apart, 20,000 lines at a time, and joined as floats: the whole numbers were rounded."""
    fraction, large = {"a": 0.5, "label": "x"}, {"a": 2**70 + 1, "label": "y"}
    for first, last in ((fraction, large), (large, fraction)):
        path = write_lines(tmp_path / "t.jsonl", [first] * 20_000 + [last])
        with pytest.raises(DataError, match="in 'a', fractions are beside whole numbers beyond 64"):
            datasets.load("table", root=path)
