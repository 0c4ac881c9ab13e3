"""CIFAR archives, written as the authors publish them."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from upslope import datasets
from upslope.datasets import cifar
from upslope.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"fine{i}" for i in range(100)]


def _rows(count, seed, classes):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, rng.integers(0, classes, count, dtype=np.uint8)


class _OldPickler(pickle._Pickler):
    """The published batches are protocol 2 from Python 2: byte strings, not unicode."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self, value):
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def _dump(content, path):
    with path.open("wb") as file:
        _OldPickler(file, protocol=2).dump(content)


@pytest.fixture
def ten(tmp_path):
    """(root of a binary and a Python archive of the same rows, pixels and labels by file)."""
    binary, python = tmp_path / "b/cifar-10-batches-bin", tmp_path / "p/cifar-10-batches-py"
    binary.mkdir(parents=True)
    python.mkdir(parents=True)
    rows = {}
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        pixels, labels = rows[name] = _rows(7, i, 10)
        (binary / f"{name}.bin").write_bytes(np.hstack([labels[:, None], pixels]).tobytes())
        _dump(
            {
                b"batch_label": f"batch {i}".encode(),
                b"labels": [int(x) for x in labels],
                b"data": pixels,
                b"filenames": [f"f{j}.png".encode() for j in range(7)],
            },
            python / name,
        )
    (binary / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    _dump(
        {
            b"num_cases_per_batch": 10000,
            b"label_names": [n.encode() for n in NAMES],
            b"num_vis": 3072,
        },
        python / "batches.meta",
    )
    return tmp_path, rows


@pytest.mark.parametrize("form", ["b", "p"])
def test_cifar10_archives_give_the_rows_in_order(ten, form):
    root, rows = ten
    splits = datasets.load("cifar10", root / form)
    pixels = np.concatenate([rows[f"data_batch_{k}"][0] for k in range(1, 6)])
    labels = np.concatenate([rows[f"data_batch_{k}"][1] for k in range(1, 6)])
    assert splits.pool.classes == tuple(NAMES)
    np.testing.assert_array_equal(
        splits.pool.inputs(range(35)).numpy(), pixels.reshape(-1, 3, 32, 32)
    )
    assert splits.pool.targets(range(35)).tolist() == labels.tolist()
    assert splits.test.targets(range(7)).tolist() == rows["test_batch"][1].tolist()
    assert datasets.statistics(splits.pool)[0] == (0.4914, 0.4822, 0.4465)


def test_cifar100_takes_the_fine_label(tmp_path):
    binary, python = tmp_path / "b/cifar-100-binary", tmp_path / "p/cifar-100-python"
    binary.mkdir(parents=True)
    python.mkdir(parents=True)
    expected = {}
    for seed, name in enumerate(("train", "test")):
        pixels, fine = _rows(9, seed, 100)
        coarse = np.arange(9, dtype=np.uint8)
        expected[name] = fine.tolist()
        (binary / f"{name}.bin").write_bytes(
            np.hstack([coarse[:, None], fine[:, None], pixels]).tobytes()
        )
        content = {
            b"filenames": [b"a.png"] * 9,
            b"fine_labels": [int(x) for x in fine],
            b"coarse_labels": [int(x) for x in coarse],
            b"data": pixels,
        }
        _dump(content, python / name)
    (binary / "fine_label_names.txt").write_text("\n".join(FINE))
    meta = {b"coarse_label_names": [b"c1", b"c2"], b"fine_label_names": [n.encode() for n in FINE]}
    _dump(meta, python / "meta")
    for form in ("b", "p"):
        splits = datasets.load("cifar100", tmp_path / form)
        assert splits.pool.classes == tuple(FINE)
        assert splits.pool.targets(range(9)).tolist() == expected["train"]
        assert splits.test.targets(range(9)).tolist() == expected["test"]


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_is_read_but_never_run(ten, tmp_path):
    root, _ = ten
    path = root / "p/cifar-10-batches-py/data_batch_2"
    mark = str(tmp_path / "ran")
    _dump({b"labels": [1], b"data": _Bomb(mark)}, path)
    with pytest.raises(DataError, match=r"data_batch_2 but got 0 bytes and 1 labels"):
        datasets.load("cifar10", root / "p")
    assert not os.path.exists(mark)  # noqa: PTH110
    with path.open("rb") as file:
        pickle.load(file)  # the same file does run its code when it is unpickled
    assert os.path.exists(mark)  # noqa: PTH110


def test_damaged_and_missing_files_are_named(ten):
    root, _ = ten
    folder = root / "b/cifar-10-batches-bin"
    whole = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"rows of 3073 bytes in .*data_batch_3\.bin"):
        datasets.load("cifar10", root / "b")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin in .* but they are missing"):
        datasets.load("cifar10", root / "b")
    with pytest.raises(DataError, match=r"train-\*\.parquet"):
        datasets.load("cifar10", root)


def test_whole_files_of_the_python_archive_have_published_checksums(ten, monkeypatch):
    root, _ = ten
    assert len(cifar._TEN.md5) == 6
    assert len(cifar._HUNDRED.md5) == 2
    monkeypatch.setattr(cifar, "_TEN", replace(cifar._TEN, rows=(7, 10_000)))
    with pytest.raises(DataError, match=r"data_batch_1 to have the published MD5 c99cafc152244af7"):
        datasets.load("cifar10", root / "p")
    datasets.load("cifar10", root / "b")


def test_statistics_of_the_authors_code_can_be_taken(ten):
    root, _ = ten
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    splits = datasets.load("cifar10", root / "b", mean=mean, std=std)
    assert datasets.statistics(splits.pool) == (tuple(mean), tuple(std))
