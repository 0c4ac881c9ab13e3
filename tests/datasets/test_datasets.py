"""The table, the options that every data set has, digits, drawing, statistics."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from upslope import datasets
from upslope.datasets.arrays import build_dataset
from upslope.datasets.subset import draw
from upslope.errors import ConfigError, DataError


def test_digits_are_those_of_scikit_learn():
    splits = datasets.load("digits")
    original = load_digits()
    assert (len(splits.pool), len(splits.test)) == (1400, 397)
    assert not set(splits.pool.ids) & set(splits.test.ids)
    for part in (splits.pool, splits.test):
        rows = [int(id_.removeprefix("digit-")) for id_ in part.ids]
        assert part.targets(range(len(part))).tolist() == original.target[rows].tolist()
        images = part.inputs(range(len(part)))
        assert images.shape[1:] == part.input_shape == (1, 8, 8)
        assert images.dtype == torch.uint8
        # Sixteen levels come back exactly.
        back = torch.round(images[:, 0].double() * 16 / 255)
        np.testing.assert_array_equal(back.numpy(), original.images[rows])
    shares = np.bincount(splits.test.labels) / np.bincount(original.target)
    assert np.allclose(shares, 397 / 1797, atol=0.01)
    assert datasets.load("digits").test.ids == splits.test.ids


def test_digits_constants_are_their_statistics():
    splits = datasets.load("digits")
    pixels = torch.cat([s.inputs(range(len(s))) for s in (splits.pool, splits.test)]).double() / 255
    assert datasets.statistics(splits.pool)[0] == pytest.approx([pixels.mean().item()], abs=5e-5)
    assert datasets.statistics(splits.pool)[1] == pytest.approx([pixels.std().item()], abs=2e-4)


def test_measured_statistics():
    images = np.random.default_rng(0).integers(0, 256, (700, 3, 4, 4), dtype=np.uint8)
    images[:, 2] = 51
    data = build_dataset("x/train", images, np.zeros(700, int), ("a", "b"), source="x")
    mean, std = datasets.statistics(data)
    scaled = images.astype(float) / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert std[:2] == pytest.approx(scaled.std((0, 2, 3))[:2])
    assert std[2] == 1 / 255  # a constant channel


def test_limit_and_validation():
    whole = datasets.load("digits")
    splits = datasets.load("digits", limit=200, test_limit=50, validation=0.1)
    assert [len(splits.pool), len(splits.validation), len(splits.test)] == [180, 20, 50]
    assert set(splits.pool.ids) | set(splits.validation.ids) < set(whole.pool.ids)
    assert set(splits.test.ids) < set(whole.test.ids)
    assert np.bincount(splits.validation.labels, minlength=10).tolist() == [2] * 10
    both = sorted([*splits.pool.ids, *splits.validation.ids])
    assert both == list(datasets.load("digits", limit=200).pool.ids)
    i = whole.pool.ids.index(splits.pool.ids[7])
    assert torch.equal(whole.pool.inputs([i]), splits.pool.inputs([7]))
    assert len(datasets.load("digits", limit=5000).pool) == 1400
    with pytest.raises(ConfigError, match="on both sides"):
        datasets.load("digits", limit=10, validation=0.01)


def test_draw_depends_on_ids_alone():
    ids, labels = [f"s{i}" for i in range(100)], np.arange(100) % 3
    drawn, rest = draw(ids, labels, 31, "test")
    assert sorted([*drawn, *rest]) == list(range(100))
    assert sorted(np.bincount(labels[drawn])) == [10, 10, 11]
    order = np.random.default_rng(0).permutation(100)
    again, _ = draw([ids[i] for i in order], labels[order], 31, "test")
    assert {ids[i] for i in drawn} == {ids[order[i]] for i in again}
    other, _ = draw(ids, labels, 31, "validation")
    assert set(drawn) != set(other)


def test_faults_are_told_together():
    with pytest.raises(ConfigError) as error:
        datasets.load("digits", limt=3, validation=2, test_limit=0)
    text = str(error.value)
    assert "`limt`; did you mean `limit`?" in text
    assert "`validation` to be a number of at least 0 and below 1 but got 2." in text
    assert "`test_limit` to be an integer of at least 1, or nothing but got 0." in text
    with pytest.raises(ConfigError, match="did you mean `fashion-mnist`"):
        datasets.load("fashion_mnist")


def test_root_is_needed_unless_the_environment_names_it(tmp_path, monkeypatch):
    monkeypatch.delenv("UPSLOPE_DATA", raising=False)
    with pytest.raises(DataError, match=r"Expected a root.*mnist"):
        datasets.load("mnist")
    monkeypatch.setenv("UPSLOPE_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    with pytest.raises(DataError, match=f"in {tmp_path / 'mnist'}"):
        datasets.load("mnist")


def test_every_data_set_describes_itself():
    lines = {line.name: line for line in datasets.describe()}
    assert list(lines) == list(datasets.REGISTRY)
    for line in lines.values():
        assert 20 < len(line.summary) < 100
        assert all(option.help for option in line.options)
    common = ["limit", "test_limit", "validation", "read_limit"]
    assert [o.name for o in lines["digits"].options] == common
