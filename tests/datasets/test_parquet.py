"""Parquet in the Hugging Face image layout, written with pyarrow and Pillow as `datasets` does."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from upslope import datasets
from upslope.datasets import encoded
from upslope.errors import ConfigError, DataError


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images, labels, names=("cat", "dog"), column="img", label="label"):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image, "path": None} for image in images]
    table = pa.table({column: pa.array(rows, kind), label: pa.array(labels, pa.int64())})
    if names:
        features = {label: {"names": list(names), "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": {column: {"_type": "Image"}, **features}}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, row_group_size=3)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path, pixels):
    images = [png(p) for p in pixels]
    write(tmp_path / "train-00000-of-00002.parquet", images[:5], [0, 1, 0, 1, None])
    write(tmp_path / "train-00001-of-00002.parquet", images[5:8], [1, 1, 0])
    write(tmp_path / "test-00000-of-00001.parquet", images[8:], [0, 1, 0, 1])
    return tmp_path


@pytest.mark.parametrize("memory", [4.0, 0.0], ids=["held", "streamed"])
def test_images_labels_and_names(root, pixels, memory):
    seen = []
    splits = datasets.load("parquet", root, memory=memory, progress=seen.append)
    pool = splits.pool
    assert pool.resident == (memory > 0)
    np.testing.assert_array_equal(pool.inputs(range(8)).numpy(), pixels[:8].transpose(0, 3, 1, 2))
    assert pool.inputs([7, 2]).shape == (2, 3, 6, 5)
    assert pool.targets([0, 1, 5, 7]).tolist() == [0, 1, 1, 0]
    assert pool.classes == ("cat", "dog")
    assert pool.ids[4] == "train-00004"
    with pytest.raises(DataError, match="label for 'train-00004'"):
        pool.targets([3, 4])
    assert [(p.phase, p.total) for p in seen[-1:]] == ([("read", 4)] if memory else [])


def test_other_columns_splits_below_and_no_names(tmp_path, pixels):
    (tmp_path / "data").mkdir()
    images = [png(p) for p in pixels]
    for file, part in (("train-0", slice(0, 6)), ("val-0", slice(6, 9))):
        labels = list(range(9))[part]
        write(tmp_path / f"data/{file}.parquet", images[part], labels, None, "photo", "kind")
    with pytest.raises(DataError, match=r"`image` or `img` in .* \['photo', 'kind'\]"):
        datasets.load("parquet", tmp_path)
    splits = datasets.load("parquet", tmp_path, image="photo", label="kind", mode="L", size=4)
    assert splits.pool.input_shape == (1, 4, 4)
    assert splits.pool.classes == tuple(str(i) for i in range(9))
    assert splits.test.targets([0]).tolist() == [6]
    with pytest.raises(ConfigError, match=r"`data.image` to name a column"):
        datasets.load("parquet", tmp_path, image="foto", label="kind")


def test_corrupt_image_is_named_or_left_out(root, pixels):
    images = [png(p) for p in pixels]
    images[1] = images[1][:40]
    write(root / "train-00000-of-00002.parquet", images[:5], [0, 1, 0, 1, 0])
    with pytest.raises(DataError, match="train-00001"):
        datasets.load("parquet", root)
    for memory in (4.0, 0.0):
        with pytest.warns(UserWarning, match="Left out 1 of 8 images"):
            splits = datasets.load("parquet", root, on_error="skip", memory=memory)
        assert splits.pool.ids[:2] == ("train-00000", "train-00002")
        np.testing.assert_array_equal(
            splits.pool.inputs([1]).numpy()[0], pixels[2].transpose(2, 0, 1)
        )
        assert splits.pool.targets([1]).tolist() == [0]


def test_images_of_two_sizes(root, pixels):
    images = [png(p) for p in pixels[:2]] + [png(pixels[2][:4])]
    write(root / "train-00001-of-00002.parquet", images, [1, 1, 0])
    with pytest.raises(DataError, match=r"train-00007.*\(3, 6, 5\).*\(3, 4, 5\).*`data.size`"):
        datasets.load("parquet", root)
    assert datasets.load("parquet", root, size=5).pool.input_shape == (3, 5, 5)


def test_bad_files(root):
    (root / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"Expected 2 files, as train-00000-of-00002\.parquet"):
        datasets.load("parquet", root)
    (root / "train-00000-of-00002.parquet").write_bytes(b"PAR1 no")
    (root / "train-00001-of-00002.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"Parquet file in .*train-00000-of-00002"):
        datasets.load("parquet", root)
    (root / "nothing").mkdir()
    with pytest.raises(DataError, match="there are none"):
        datasets.load("parquet", root / "nothing")
    with pytest.raises(DataError, match="no such path"):
        datasets.load("parquet", root / "nowhere")


def test_files_without_rows(root):
    write(root / "test-00000-of-00001.parquet", [], [])
    with pytest.raises(DataError, match="at least one test sample"):
        datasets.load("parquet", root)
    for part in ("train-00000-of-00002", "train-00001-of-00002"):
        write(root / f"{part}.parquet", [], [])
    with pytest.raises(
        DataError, match=r"at least one image to learn from in /.* but there is none"
    ):
        datasets.load("parquet", root)


def test_label_out_of_range_and_unlabelled_test(root, pixels):
    images = [png(p) for p in pixels[8:]]
    write(root / "test-00000-of-00001.parquet", images, [0, 1, 2, 1])
    with pytest.raises(DataError, match=r"between 0 and 1 .* got 2 at 'test-00002'"):
        datasets.load("parquet", root)
    write(root / "test-00000-of-00001.parquet", images, [0, 1, None, 1])
    with pytest.raises(DataError, match=r"every test sample to have a label .* 'test-00002'"):
        datasets.load("parquet", root)


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_as_published():
    root = os.environ.get("UPSLOPE_DATA", "")
    if not Path(root, "cifar10").is_dir():
        pytest.skip("UPSLOPE_DATA names no folder with cifar10")
    splits = datasets.load("cifar10", root, test_limit=100)
    assert (len(splits.pool), len(splits.test)) == (50_000, 100)
    assert np.bincount(splits.pool.targets(range(50_000)).numpy()).tolist() == [5000] * 10
    assert splits.pool.classes[8] == "ship"
    values = splits.pool.inputs(range(50_000)).double().div_(255).transpose(0, 1).flatten(1)
    assert splits.pool.mean == pytest.approx(values.mean(1).tolist(), abs=1e-4)
    assert splits.pool.std == pytest.approx(values.std(1).tolist(), abs=1e-4)


def test_many_images_are_decoded_once_and_kept(root, pixels, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(encoded, "_MANY", 1)
    first = datasets.load("parquet", root)
    files = sorted((tmp_path / "cache/upslope").iterdir())
    assert len(files) == 2
    calls = []
    decode = encoded.decode
    monkeypatch.setattr(encoded, "decode", lambda *a: calls.append(a) or decode(*a))
    again = datasets.load("parquet", root)
    assert not calls
    everything = range(len(first.pool))
    assert again.pool.inputs(everything).equal(first.pool.inputs(everything))
    assert again.pool.targets([0, 7]).tolist() == [0, 0]
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])  # cut short: made anew
    with pytest.warns(UserWarning, match="is damaged: they are decoded again"):
        whole = datasets.load("parquet", root)
    assert whole.pool.inputs(everything).equal(first.pool.inputs(everything))
    assert calls
    assert len(datasets.load("parquet", root, size=3).pool.inputs([0])[0, 0]) == 3


def test_files_of_another_data_set_are_not_taken_for_it(tmp_path, pixels):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            images = [png(p) for p in pixels[:6]]
            write(tmp_path / folder / f"{split}-00000-of-00001.parquet", images, [0, 1] * 3)
        if folder == "one":
            with pytest.raises(DataError, match=r"'cifar100', of 100 classes, .* have 2:"):
                datasets.load("cifar100", tmp_path)
    with pytest.raises(DataError, match=r"one data set .* of 2: one, other"):
        datasets.load("cifar100", tmp_path)


def write_columns(folder, images, labels, kind=None, label_type=None, metadata=None):
    """Six images to learn from and four to test on, in columns of the types given."""
    kind = kind or pa.binary()
    for split, part in (("train", slice(0, 6)), ("test", slice(6, 10))):
        columns = {
            "image": pa.array(images[part], kind),
            "label": pa.array(labels[part], label_type),
        }
        table = pa.table(columns)
        info = metadata and metadata.get(split)
        if info:
            features = {"label": {"names": info, "_type": "ClassLabel"}}
            text = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": text})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_binary(), pa.binary(), pa.binary_view(), pa.struct({"bytes": pa.large_binary()}),
        pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int8(), pa.large_binary()),
    ],
)  # fmt: skip
def test_bytes_of_any_type(tmp_path, pixels, kind):
    images = [png(p) for p in pixels]
    cells = [{"bytes": one} for one in images] if pa.types.is_struct(kind) else images
    splits = datasets.load("parquet", write_columns(tmp_path, cells, [0, 1] * 5, kind))
    np.testing.assert_array_equal(
        splits.pool.inputs(range(6)).numpy(), pixels[:6].transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    ("labels", "kind", "names", "values"),
    [
        ([0, 1] * 5, pa.uint8(), ("0", "1"), [0, 1, 0, 1, 0, 1]),
        ([0, 1] * 5, pa.uint64(), ("0", "1"), [0, 1, 0, 1, 0, 1]),
        ([None, 1.0, *[0.0, 1.0] * 4], pa.float64(), ("0", "1"), [-1, 1, 0, 1, 0, 1]),
        ([True, False] * 5, pa.bool_(), ("False", "True"), [1, 0, 1, 0, 1, 0]),
        (["b", "a"] * 5, pa.large_string(), ("a", "b"), [1, 0, 1, 0, 1, 0]),
        (["b", "NA", *["b", "a"] * 4], pa.string(), ("a", "b"), [1, -1, 1, 0, 1, 0]),
        ([b"b", b"a"] * 5, pa.binary(), ("a", "b"), [1, 0, 1, 0, 1, 0]),
        (["b", "a"] * 5, pa.dictionary(pa.int8(), pa.string()), ("a", "b"), [1, 0, 1, 0, 1, 0]),
    ],
)
def test_labels_of_any_type(tmp_path, pixels, labels, kind, names, values):
    images = [png(p) for p in pixels]
    splits = datasets.load("parquet", write_columns(tmp_path, images, labels, label_type=kind))
    assert splits.pool.classes == splits.test.classes == names
    assert splits.pool.labels.tolist() == values
    unlabelled = values.count(-1)
    assert bool(splits.notes) == bool(unlabelled)
    assert all("1 of " in note and "unlabelled" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0] * 5, r"whole numbers or text but got 0\.5"),
        ([2**40, 1] * 5, f"numbered from 0 but got {2**40} as the highest of 2"),
        ([[0], [1]] * 5, "whole numbers or text in every split but got list"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, pixels, labels, message):
    with pytest.raises(DataError, match=message):
        datasets.load("parquet", write_columns(tmp_path, [png(p) for p in pixels], labels))


def test_classes_that_splits_name_differently_are_refused(tmp_path, pixels):
    images = [png(p) for p in pixels]
    names = {"train": ["cat", "dog"], "test": ["dog", "cat"]}
    with pytest.raises(DataError, match=r"same order .* first differing in 'cat' and 'dog'"):
        datasets.load("parquet", write_columns(tmp_path, images, [0, 1] * 5, metadata=names))
    names = {"train": None, "test": ["cat", "dog"]}
    splits = datasets.load("parquet", write_columns(tmp_path, images, [0, 1] * 5, metadata=names))
    assert splits.pool.classes == ("cat", "dog")


def test_images_that_are_in_pool_and_test_set_are_told(tmp_path, pixels):
    images = [png(p) for p in pixels]
    images[7] = images[2]
    splits = datasets.load("parquet", write_columns(tmp_path, images, [0, 1] * 5))
    first, second = splits.notes
    assert first.startswith(
        "1 of 4 test images have the same inputs as one of the pool, first 'test-00001' as "
        "'train-00002'"
    )
    assert second.startswith("1 group of images with the same inputs and different labels")


def test_files_and_columns_that_are_left_out_are_told(tmp_path, pixels):
    images = [png(p) for p in pixels]
    labels = [i % 2 for i in range(len(images))]
    write_columns(tmp_path, images, labels)
    assert not any("Left out" in note for note in datasets.load("parquet", tmp_path).notes)
    first = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(first, tmp_path / "unsupervised.parquet")
    pq.write_table(first.append_column("coarse", pa.array(labels[:6])), tmp_path / "train.parquet")
    (tmp_path / "test.parquet").rename(tmp_path / "valid-00000-of-00001.parquet")
    notes = datasets.load("parquet", tmp_path).notes
    assert "Left out 1 file: 'unsupervised.parquet'." in notes
    assert "Left out 1 column: 'coarse'." in notes
    assert "The files of valid are the test set: there are none of test." in notes


def test_what_decoding_changes_in_images_is_told(tmp_path, pixels):
    """Transparency and 16 bits went without a word, which folders and tar files tell."""
    opaque = np.full((*pixels.shape[:3], 1), 255, np.uint8)
    images = [png(p) for p in np.concatenate([pixels, opaque], axis=3)]
    notes = datasets.load("parquet", write_columns(tmp_path, images, [0, 1] * 5)).notes
    assert any(note.startswith("10 of 10 images can be transparent in part") for note in notes)
    deep = np.random.default_rng(0).integers(0, 2**16, (10, 6, 5)).astype(np.uint16)
    root = write_columns(tmp_path, [png(p) for p in deep], [0, 1] * 5)
    (note,) = datasets.load("parquet", root, mode="L", on_error="skip").notes
    assert note.startswith("10 of 10 images hold 16 bits: with 65535 as white")
