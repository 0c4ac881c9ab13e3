"""Folders of images: by class, split or not, or with a manifest."""

import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.datasets.base import place_of
from upslope.datasets.subset import Subset
from upslope.errors import ConfigError, DataError


def save(path, level, size=(6, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level,) * 3).save(path)


def by_class(root, counts):
    for label, count in counts.items():
        for i in range(count):
            save(root / label / f"{i}.png", i)


def test_stated_splits(tmp_path):
    by_class(tmp_path / "train", {"cat": 3, "dog": 2, "unlabelled": 2})
    by_class(tmp_path / "test", {"cat": 1, "dog": 1})
    by_class(tmp_path / "val", {"dog": 2})
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    splits = datasets.load("folder", tmp_path)
    pool = splits.pool
    assert pool.ids[:4] == (
        "train/cat/0.png",
        "train/cat/1.png",
        "train/cat/2.png",
        "train/dog/0.png",
    )
    assert pool.classes == ("cat", "dog")
    assert pool.targets(range(5)).tolist() == [0, 0, 0, 1, 1]
    assert pool.inputs([2])[0, 0, 0, 0] == 2
    with pytest.raises(DataError, match=r"label for 'train/unlabelled/1\.png'"):
        pool.targets([6])
    assert splits.test.ids == ("test/cat/0.png", "test/dog/0.png")
    assert splits.validation.targets([0, 1]).tolist() == [1, 1]


def test_lone_validation_folder_is_the_test_set(tmp_path):
    by_class(tmp_path / "train", {"cat": 2, "dog": 2})
    by_class(tmp_path / "val", {"cat": 2, "dog": 1})
    splits = datasets.load("folder", tmp_path)
    assert len(splits.test) == 3
    assert splits.validation is None


def test_drawn_split_is_stratified_and_stable(tmp_path):
    by_class(tmp_path, {"cat": 20, "dog": 10})
    first = datasets.load("folder", tmp_path)
    assert sorted(np.bincount(first.test.labels)) == [2, 4]
    assert not set(first.pool.ids) & set(first.test.ids)
    assert len(first.pool) + len(first.test) == 30
    assert datasets.load("folder", tmp_path).test.ids == first.test.ids


def test_manifest(tmp_path):
    for i in range(6):
        save(tmp_path / f"images/{i}.png", i)
    lines = ["path,label,split", "images/0.png,a,train", "images/1.png,b,", "images/2.png,,train"]
    (tmp_path / "m.csv").write_text("\n".join([*lines, "images/3.png,b,test"]))
    splits = datasets.load("folder", tmp_path, manifest="m.csv")
    assert splits.pool.ids == ("images/0.png", "images/1.png", "images/2.png")
    assert splits.pool.targets([0, 1]).tolist() == [0, 1]
    assert splits.test.ids == ("images/3.png",)
    for bad, message in (
        ("file,label\n", "columns path, label"),
        ("path,label\nimages/9.png,a\n", r"images/9\.png, line 2 of"),
        ("path,label\nimages/1.png,a\nimages/1.png,b\n", "listed again, line 3"),
        ("path,label,split\nimages/1.png,a,tset\n", "split of line 2 .* 'tset'"),
    ):
        (tmp_path / "m.csv").write_text(bad)
        with pytest.raises(DataError, match=message):
            datasets.load("folder", tmp_path, manifest="m.csv")


@pytest.mark.parametrize("memory", [4.0, 0.0], ids=["held", "streamed"])
def test_streamed_equals_held_and_names_corrupt_files(tmp_path, memory):
    by_class(tmp_path / "train", {"cat": 12, "dog": 3})
    by_class(tmp_path / "test", {"cat": 1, "dog": 1})
    splits = datasets.load("folder", tmp_path, memory=memory)
    assert splits.pool.resident == (memory > 0)
    levels = splits.pool.inputs([14, 3, 0, *range(12)])[:, 0, 0, 0].tolist()
    first = [int(id_.split("/")[-1][:-4]) for id_ in splits.pool.ids]
    assert levels == [first[14], first[3], first[0], *first[:12]]
    broken = tmp_path / "train/cat/5.png"
    broken.write_bytes(broken.read_bytes()[:30])
    with pytest.raises(DataError, match=r"train/cat/5\.png but it cannot be decoded"):
        datasets.load("folder", tmp_path, memory=memory).pool.inputs(range(15))
    with pytest.warns(
        UserWarning, match=r"Left out 1 of 15 images of .* \(train\), .*train/cat/5\.png"
    ):
        splits = datasets.load("folder", tmp_path, memory=memory, on_error="skip")
    assert "train/cat/5.png" not in splits.pool.ids
    levels = splits.pool.inputs(range(14))[:, 0, 0, 0].tolist()
    assert levels == [int(id_.split("/")[-1][:-4]) for id_ in splits.pool.ids]


def test_a_corrupt_first_image_does_not_end_a_run_that_skips(tmp_path):
    by_class(tmp_path / "train", {"cat": 3, "dog": 2})
    by_class(tmp_path / "test", {"cat": 1, "dog": 1})
    (tmp_path / "train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train/cat/0\.png"):
        datasets.load("folder", tmp_path)
    with pytest.warns(UserWarning, match="Left out 1 of 5 images"):
        splits = datasets.load("folder", tmp_path, on_error="skip")
    assert splits.pool.ids[0] == "train/cat/1.png"


def test_layouts_that_cannot_be_meant(tmp_path):
    with pytest.raises(DataError, match=r"in /.*, at any depth, but there are none\. It is empty"):
        datasets.load("folder", tmp_path)
    by_class(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError,
        match=r"\.png, .*\) of a class in .*empty, at any depth, but there are none\. It is empty",
    ):
        datasets.load("folder", tmp_path)
    (tmp_path / "empty").rmdir()
    save(tmp_path / "loose.png", 0)
    with pytest.raises(DataError, match=r"loose\.png lies beside"):
        datasets.load("folder", tmp_path)


def test_to_score_every_image_is_the_pool(tmp_path):
    save(tmp_path / "loose.png", 7)
    save(tmp_path / ".cache/thumb.png", 1)
    by_class(tmp_path, {"cat": 3, "deep/er": 1})
    with pytest.warns(UserWarning, match=r"Left out 1 hidden folder: '\.cache'"):
        pool = datasets.load_to_score("folder", tmp_path, test_share=0.5)
    shutil.rmtree(tmp_path / ".cache")
    assert pool.ids == ("cat/0.png", "cat/1.png", "cat/2.png", "deep/er/0.png", "loose.png")
    assert pool.classes == ()
    assert pool.inputs(range(5))[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 7]
    assert len(datasets.load_to_score("folder", tmp_path, limit=2)) == 2
    (tmp_path / "m.csv").write_text("path,label,split\nloose.png,,\ncat/0.png,,test\n")
    with pytest.warns(UserWarning, match=r"Left out 3 images that m\.csv does not list"):
        pool = datasets.load_to_score("folder", tmp_path, manifest="m.csv")
    assert pool.ids == ("loose.png",)
    (tmp_path / "m.csv").unlink()
    by_class(tmp_path, {"train/new": 1})
    assert datasets.load_to_score("folder", tmp_path).ids == ("train/new/0.png",)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"to score in .*none, at any depth, but there are none"):
        datasets.load_to_score("folder", tmp_path / "none")


def test_of_many_damaged_images_all_are_listed_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    by_class(tmp_path / "data" / "train", {"cat": 70, "dog": 8})
    by_class(tmp_path / "data" / "test", {"cat": 1, "dog": 1})
    damaged = sorted(f"train/cat/{i}.png" for i in range(60))
    for name in damaged:
        (tmp_path / "data" / name).write_bytes(b"junk")
    with pytest.warns(UserWarning, match="Left out 60 of 78 images") as told:
        datasets.load("folder", tmp_path / "data", on_error="skip")
    (text,) = [str(w.message) for w in told if "Left out 60" in str(w.message)]
    assert "and 10 more, all listed in " in text
    (file,) = (tmp_path / "cache" / "upslope").glob("left-out-*.txt")
    assert str(file) in text
    assert file.read_text().splitlines() == [repr(name) for name in damaged]
    (tmp_path / "file").write_text("a file is no folder to write into")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="Left out 60 of 78 images") as told:
        datasets.load("folder", tmp_path / "data", on_error="skip")
    (text,) = [str(w.message) for w in told if "Left out 60" in str(w.message)]
    assert all(repr(name) in text for name in damaged)


# One value for each option that a folder has, other than the default.
OPTIONS = {
    "classes": ["cat", "dog"],
    "manifest": "m.csv",
    "test_share": 0.5,
    "mode": "L",
    "size": 4,
    "on_error": "skip",
    "memory": 0.0,
    "decoders": 1,
    "mean": [0.1],
    "std": [0.5],
    "white": 255,
    "layout": "classes",
    "duplicates": "off",
    "missing_labels": ["none"],
    "encoding": "latin-1",
    "limit": 3,
    "test_limit": 1,
    "validation": 0.5,
    "read_limit": 1.0,
}


@pytest.mark.parametrize("option", datasets.options("folder"))
def test_every_option_of_a_run_is_taken_in_scoring(tmp_path, option):
    by_class(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "m.csv").write_text("path,label\ncat/1.png,cat\ndog/0.png,none\n")
    grey = {"mode": "L", "mean": [0.1], "std": [0.5]}
    given = grey if option in grey else {option: OPTIONS[option]}
    if option in ("missing_labels", "encoding"):
        given["manifest"] = "m.csv"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Left out 1 file of the kind .csv")
        warnings.filterwarnings("ignore", "Left out 2 images that m.csv does not list")
        pool = datasets.load_to_score("folder", tmp_path, **given)
    edge = 4 if option == "size" else 6
    assert len(pool) == (2 if "manifest" in given else 3 if option == "limit" else 4)
    assert pool.input_shape == (1 if option in grey else 3, edge, edge)


@pytest.mark.parametrize("memory", [4.0, 0.0], ids=["held", "streamed"])
def test_statistics_of_the_training_are_taken(tmp_path, memory):
    by_class(tmp_path, {"a": 5, "b": 5})
    known = {"mode": "L", "mean": [0.25], "std": [0.5], "memory": memory}
    pool = datasets.load_to_score("folder", tmp_path, **known)
    assert datasets.statistics(pool) == ((0.25,), (0.5,))
    assert datasets.statistics(datasets.load("folder", tmp_path, **known).pool) == ((0.25,), (0.5,))
    with pytest.raises(ConfigError, match="each of the 3 channels"):
        datasets.load_to_score("folder", tmp_path, mean=[0.25], std=[0.5])
    with pytest.raises(ConfigError, match="Divide those"):
        datasets.load_to_score("folder", tmp_path, mode="L", mean=[127.5], std=[64])


def test_messages_call_the_data_by_the_path_that_was_given(tmp_path):
    by_class(tmp_path / "photos", {"cat": 4, "dog": 4})
    (tmp_path / "photos/cat/0.png").write_bytes(b"no image")
    root = str(tmp_path / "photos")
    with pytest.warns(UserWarning, match=rf"Left out 1 of \d images of {root} \(t") as told:
        datasets.load("folder", root, on_error="skip", mode="RGB")
    assert not [w for w in told if "photos/train" in str(w.message)]
    (tmp_path / "photos/cat/0.png").unlink()
    streamed = datasets.load("folder", root, memory=0)
    assert place_of(streamed.pool) == f"{root} (train)"
    assert place_of(Subset(streamed.pool, [0])) == f"{root} (train)"


def test_one_image_under_two_spellings_of_its_path_in_a_manifest(tmp_path):
    (tmp_path / "x").mkdir()
    for i in range(8):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i}.png")
    rows = [f"./{i}.png,{'ab'[i % 2]}" for i in range(8)]
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label\n" + "\n".join(rows))
    splits = datasets.load("folder", tmp_path, manifest="m.csv")
    assert not any("Left out" in note for note in splits.notes)
    for again in ("0.png", "x/../0.png", f"{tmp_path}/0.png"):
        manifest.write_text("path,label\n" + "\n".join([*rows, f"{again},b"]))
        with pytest.raises(DataError, match=r"each image once but .* is listed again, line 10"):
            datasets.load("folder", tmp_path, manifest="m.csv")
    manifest.write_text("path,label,split,split\n0.png,a,train,test\n")
    with pytest.raises(DataError, match=r"each column of .* once but 'split' is there twice"):
        datasets.load("folder", tmp_path, manifest="m.csv")


def test_avif_photographs_are_read_by_their_suffix(tmp_path):
    by_class(tmp_path, {"cat": 3, "dog": 3})
    Image.new("RGB", (6, 6), (90,) * 3).save(tmp_path / "cat/photo.AVIF", quality=100)
    pool = datasets.load("folder", tmp_path, test_share=0.1).pool
    pixels = pool.inputs([pool.ids.index("cat/photo.AVIF")])
    assert np.abs(pixels.numpy().astype(int) - 90).max() <= 2


def test_avif_pictures_are_left_out_and_told_where_pillow_cannot_read_them(tmp_path, monkeypatch):
    by_class(tmp_path, {"cat": 3, "dog": 3})
    Image.new("RGB", (6, 6)).save(tmp_path / "cat/photo.avif")
    monkeypatch.setattr("upslope.datasets.layout.reads_avif", lambda: False)
    splits = datasets.load("folder", tmp_path)
    assert any("Left out 1 file of the kind .avif" in note for note in splits.notes)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_manifest_may_have_other_delimiters_than_commas(tmp_path, delimiter):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    rows = ["path,label,split", "0.png,a,train", "1.png,b,train", "2.png,a,test"]
    (tmp_path / "m.csv").write_text("\n".join(rows).replace(",", delimiter))
    splits = datasets.load("folder", tmp_path, manifest="m.csv")
    assert (splits.pool.ids, splits.test.ids) == (("0.png", "1.png"), ("2.png",))
    (tmp_path / "m.csv").write_text("\n".join(rows).replace(",", delimiter) + f"{delimiter}x\n")
    with pytest.raises(DataError, match=r"3 values, one per column, but got 4, line 4"):
        datasets.load("folder", tmp_path, manifest="m.csv")


@pytest.mark.parametrize("line", ["sep=;\n", "SEP=;\r\n"])
def test_the_line_of_excel_about_the_delimiter_is_no_header(tmp_path, line):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    rows = "path;label;split\n0.png;a,b;train\n1.png;c;train\n2.png;c;test\n"
    (tmp_path / "m.csv").write_text(line + rows, newline="")
    splits = datasets.load("folder", tmp_path, manifest="m.csv")
    assert splits.pool.classes == ("a,b", "c")
    (tmp_path / "m.csv").write_text(line + rows + "2.png;c;test\n", newline="")
    with pytest.raises(DataError, match=r"'2\.png' is listed again, line 6 of"):
        datasets.load("folder", tmp_path, manifest="m.csv")


def test_an_empty_variable_of_the_environment_is_not_the_current_folder(tmp_path, monkeypatch):
    by_class(tmp_path, {"cat": 3, "dog": 3})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPSLOPE_DATA", "")
    with pytest.raises(DataError, match="Expected a root"):
        datasets.load("folder")
