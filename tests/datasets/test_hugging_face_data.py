"""Data sets built by `datasets` itself; nothing is asked of a network."""

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.config import parse
from upslope.errors import ConfigError, DataError

hf = pytest.importorskip("datasets", reason="datasets is not installed")
if not hasattr(hf, "Dataset"):  # this folder, whose name is the library's
    pytest.skip("datasets is not installed", allow_module_level=True)


def images(count, mode="RGB"):
    shape = (5, 6, 3) if mode == "RGB" else (5, 6)
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def saved(folder, features, **splits):
    made = {k: hf.Dataset.from_dict(v, features=hf.Features(features)) for k, v in splits.items()}
    hf.DatasetDict(made).save_to_disk(str(folder))
    return folder


NAMES = hf.ClassLabel(names=["cat", "dog", "owl"])


@pytest.mark.parametrize("options", [{}, {"memory": 0}, {"memory": 0, "decoders": 1}])
def test_encoded_images_and_the_names_of_classes(tmp_path, options):
    pixels = images(8)
    rows = {"picture": [Image.fromarray(p) for p in pixels], "kind": [0, 1, 2, 0, 1, 2, -1, 0]}
    test = {"picture": rows["picture"][:2], "kind": [2, 2]}
    saved(tmp_path, {"picture": hf.Image(), "kind": NAMES}, train=rows, validation=test)
    splits = datasets.load("hf", tmp_path, **options)
    assert splits.pool.classes == ("cat", "dog", "owl")
    np.testing.assert_array_equal(
        splits.pool.inputs([7, 0, 3]).numpy(), pixels[[7, 0, 3]].transpose(0, 3, 1, 2)
    )
    assert splits.pool.targets([1, 2]).tolist() == [1, 2]
    with pytest.raises(DataError, match="train-00006"):
        splits.pool.targets([6])
    assert splits.test.targets([0, 1]).tolist() == [2, 2]


@pytest.mark.parametrize("last", [True, False])
def test_arrays_keep_their_type(tmp_path, last):
    pixels = images(4) if last else images(4).transpose(0, 3, 1, 2)
    rows = {"x": list(pixels), "label": [0, 1, 1, 0]}
    kind = {"x": hf.Array3D(pixels.shape[1:], "uint8"), "label": hf.Value("int64")}
    splits = datasets.load("hf", saved(tmp_path, kind, train=rows, test=rows))
    assert splits.pool.inputs([0]).dtype == splits.pool.inputs([0]).new_zeros(1).byte().dtype
    np.testing.assert_array_equal(
        splits.pool.inputs(range(4)).numpy(), images(4).transpose(0, 3, 1, 2)
    )
    assert splits.pool.classes == ("0", "1")


def test_columns_splits_and_folders_that_do_not_fit(tmp_path):
    rows = {"a": [Image.fromarray(p) for p in images(2)], "n": [0, 1], "s": ["x", "y"]}
    kind = {"a": hf.Image(), "n": hf.Value("int64"), "s": hf.Value("string")}
    root = saved(tmp_path / "one", kind, train=rows, holdout=rows)
    with pytest.raises(DataError, match="test is not among train, holdout"):
        datasets.load("hf", root)
    with pytest.raises(ConfigError, match=r"`data.label` to name a column of .* n \(int64\)"):
        datasets.load("hf", root, test="holdout")
    named = datasets.load("hf", root, test="holdout", label="s")
    assert named.pool.classes == ("x", "y")
    assert named.pool.targets([0, 1]).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"column `a` .* whole numbers or text"):
        datasets.load("hf", root, test="holdout", label="a")
    assert len(datasets.load("hf", root, test="holdout", label="n").pool) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"dataset_dict\.json, as `save_to_disk`"):
        datasets.load("hf", tmp_path / "none")


def test_splits_share_their_classes(tmp_path):
    pictures = [Image.fromarray(p) for p in images(4)]
    kind = {"image": hf.Image(), "label": hf.Value("uint8")}
    train, test = {"image": pictures, "label": [0, 3, 1, 2]}, {"image": pictures, "label": [0] * 4}
    splits = datasets.load("hf", saved(tmp_path / "whole", kind, train=train, test=test))
    assert splits.pool.classes == splits.test.classes == ("0", "1", "2", "3")
    assert any("4 of 4 test images have the same inputs" in note for note in splits.notes)
    other = {**kind, "label": hf.ClassLabel(names=["dog", "cat", "owl", "elk"])}
    names = {**kind, "label": hf.ClassLabel(names=["cat", "dog", "owl", "elk"])}
    made = hf.DatasetDict(
        train=hf.Dataset.from_dict(train, features=hf.Features(names)),
        test=hf.Dataset.from_dict(test, features=hf.Features(other)),
    )
    made.save_to_disk(str(tmp_path / "named"))
    with pytest.raises(DataError, match=r"same order .* first differing in 'cat' and 'dog'"):
        datasets.load("hf", tmp_path / "named")


def test_the_name_says_what_to_load(monkeypatch, tmp_path):
    asked = []
    rows = {"image": [Image.fromarray(p) for p in images(2)], "label": [0, 2]}
    made = hf.Dataset.from_dict(rows, features=hf.Features({"image": hf.Image(), "label": NAMES}))

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return hf.DatasetDict(train=made, test=made)

    monkeypatch.setattr(hf, "load_dataset", load_dataset)
    splits = datasets.load("hf:owner/things", limit=1, subset="small")
    assert asked == [(("owner/things", "small"), {})]  # and no leave to run its code
    assert len(splits.pool) == 1
    config = parse({"data": {"name": "hf:owner/things", "size": 32}})
    assert config.data.name == "hf:owner/things"

    def offline(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(hf, "load_dataset", offline)
    with pytest.raises(DataError, match=r"'owner/things' on the Hugging Face Hub .*no network"):
        datasets.load("hf:owner/things")


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[hf\]'"):
        datasets.load("hf", tmp_path)


def test_what_decoding_changes_in_images_is_told(tmp_path):
    pictures = [Image.fromarray(p).convert("RGBA") for p in images(6)]
    train = {"image": pictures[:4], "label": [0, 1, 0, 1]}
    test = {"image": [picture.convert("RGB") for picture in pictures[4:]], "label": [0, 1]}
    kind = {"image": hf.Image(), "label": hf.Value("int64")}
    (note,) = datasets.load("hf", saved(tmp_path, kind, train=train, test=test)).notes
    assert note.startswith("4 of 6 images can be transparent in part, and are laid over white.")


def test_a_missing_part_of_a_split_in_arrow_files_is_refused(tmp_path):
    features = hf.Features({"image": hf.Image(), "label": NAMES})
    columns = {"image": [Image.fromarray(p) for p in images(4)], "label": [0, 1, 2, 0]}
    hf.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    content = next((tmp_path / "saved").glob("*.arrow")).read_bytes()
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("train-00000-of-00003", "train-00002-of-00003", "test"):
        (folder / f"{name}.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"Expected 3 files, as train-00000-of-00003\.arrow says"):
        datasets.load("hf", folder)
    (folder / "train-00001-of-00003.arrow").write_bytes(content)
    (folder / "._test.arrow").write_bytes(b"\0\5\x16\7")
    assert len(datasets.load("hf", folder).pool) == 12
