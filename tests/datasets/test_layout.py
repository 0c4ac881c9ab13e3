"""Which folders are splits and which are classes; what is neither is refused or told."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.datasets.folder_names import are_no_classes, split_of
from upslope.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def lay(root, *folders, count=5):
    """Photographs that all differ in each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")


def lay_splits(root, *splits, classes=("cat", "dog"), count=5):
    lay(root, *(f"{split}/{name}" for split in splits for name in classes), count=count)


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), ("training", "train"), ("TRAINING_SET", "train"),
     ("train-images", "train"), ("images_train", "train"), ("train2017", "train"),
     ("trainval", "train"), ("Test", "test"), ("testing", "test"), ("test_set", "test"),
     ("test1", "test"), ("hold-out", "test"), ("val", "validation"), ("Valid", "validation"),
     ("dev", "validation"), ("dev_set", "validation"), ("validation data", "validation"),
     ("cat", None), ("test tube", None), ("contest", None), ("trains", None),
     ("station_train", None), ("devil", None), ("3", None), ("", None)],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("train_set", "test_set"), ("TRAIN", "TEST"),
     ("train", "val"), ("train", "dev"), ("Training", "Validation")],
)  # fmt: skip
def test_splits_in_other_spellings(tmp_path, train, test):
    lay_splits(tmp_path, train, test)
    splits = datasets.load("folder", tmp_path)
    assert splits.pool.classes == ("cat", "dog")
    assert {id_.split("/")[0] for id_ in splits.pool.ids} == {train}
    assert {id_.split("/")[0] for id_ in splits.test.ids} == {test}
    lone = [n for n in splits.notes if "validation split are the test set" in n]
    assert len(lone) == (test.lower()[:4] != "test")


def test_all_three_and_what_is_none_of_them(tmp_path):
    lay_splits(tmp_path, "training", "testing", "dev")
    lay(tmp_path, "Unlabelled", "raw/deep", count=2)
    lay(tmp_path, ".", count=1)
    splits = datasets.load("folder", tmp_path)
    assert (len(splits.pool), len(splits.test), len(splits.validation)) == (12, 10, 10)
    with pytest.raises(DataError, match="label for 'Unlabelled"):
        splits.pool.targets([splits.pool.ids.index("Unlabelled/0.png")])
    assert splits.notes == (
        "Left out 1 image beside the folders of the splits: '0.png'.",
        "Left out 2 images of the folder 'raw', which names no split: 'raw/deep/0.png', "
        "'raw/deep/1.png'.",
    )
    assert len(datasets.load_to_score("folder", tmp_path)) == 12


def test_what_is_unlabelled_beside_a_test_set_is_to_learn_from(tmp_path):
    lay(tmp_path, "unlabelled", "test/cat", "test/dog", count=2)
    splits = datasets.load("folder", tmp_path)
    assert splits.pool.ids == ("unlabelled/0.png", "unlabelled/1.png")
    assert len(splits.test) == 4
    assert datasets.load_to_score("folder", tmp_path).ids == splits.pool.ids
    lay(tmp_path, "cow", count=2)  # neither a split nor unlabelled: a class, or a mistake
    with pytest.raises(DataError, match="folder to learn from"):
        datasets.load("folder", tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["test/cat", "test/dog", "valid/cat", "valid/dog"], "folder to learn from, .*'valid'"),
        (["cat", "dog", "test"], "folder to learn from"),
        (["valid", "invalid"], "folder to learn from"),
        (["bus", "car", "train"], "'train' names a split and 'bus', 'car' do not"),
        (["train/a", "Train/b", "test/a"], "one folder of the split train .*'Train', 'train'"),
        (["train/a", "train/b", "val/a", "dev/a"], "one folder of the split validation"),
        (["train", "test"], r"0\.png lies beside"),
        (["images/train/a", "images/train/b", "images/test/a", "labels/x"], "Give .*images as the"),
        (["data/train/a", "data/test/a"], "Give .*data as the root"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], r"Lay them out as train/<class>/"),
        (["cats_train", "cats_test", "dogs_train", "dogs_test"], "seem to name both"),
        (["photos/cat", "photos/dog"], "two classes .*folders in .*photos, give that as the root"),
        (["2022", "2023", "2024"], "named by date"),
        (["2024-05-01", "2024-05-02"], "named by date"),
        (["train/2023", "train/2024", "test/2023"], "named by date"),
        (["January", "Feb 2024"], "named by date"),
        (["01.05.2024", "2.5.2024"], "named by date"),
        (["100CANON", "101CANON"], "or by a camera"),
        (["fold_0", "fold_1"], "as parts"),
        (["Januar", "März"], "named by date"),
        (["2020Q1", "2020-KW12", "summer 2021"], "named by date"),
        (["Montag", "Tuesday"], "named by date"),
        (["session1", "day 2", "Woche3"], "as parts"),
        (["images", "masks"], "by kinds of files"),
        (["New Folder", "New Folder (2)"], "by kinds of files"),
        (["images/cat", "images/dog"], "folders in .*images, give that as the root"),
        (["cat/2024/train", "cat/2024/test", "dog/a"], r"deeper ones name splits.*cat/2024/te"),
        (["train/a", "train/b", "query/a", "query/b"], "'query' names no split. Call"),
        (["train/a", "train/b", "testA/a", "raw"], "'raw', 'testA' name no split"),
        (["seg_train", "seg_test"], "seem to name both"),
        (["Trainingsdaten", "Testdaten"], "seem to name both"),
        (["train/train/a", "train/train/b", "test/test/a"], "has 'train' and the test set 'test'"),
        (["train/a", "train/b", "test/A", "test/B"], "has 'a', 'b' and the test set 'A', 'B'"),
        (["train/a", "train/b", "test/a", "val/x/a"], "and the validation set 'x'"),
    ],
)
def test_layouts_with_two_meanings_are_refused(tmp_path, folders, message):
    lay(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        datasets.load("folder", tmp_path)


@pytest.mark.parametrize(
    "names",
    [("bus", "car", "train"), ("valid", "invalid"), ("2022", "2023"), ("cats_train", "cats_test")],
)
def test_layout_says_which_is_meant(tmp_path, names):
    lay(tmp_path, *names)
    assert datasets.load("folder", tmp_path, layout="classes").pool.classes == tuple(sorted(names))
    assert len(datasets.load_to_score("folder", tmp_path, layout="classes")) == 5 * len(names)


@pytest.mark.parametrize(
    "names",
    [
        ("train station", "valley", "bridge"),
        ("1999", "cat"),
        ("mayfly", "marble"),
        ("0", "1"),
        ("test tube", "flask"),
        ("A", "a"),
    ],
)
def test_classes_that_are_no_dates(tmp_path, names):
    lay(tmp_path, *names)
    assert datasets.load("folder", tmp_path).pool.classes == tuple(sorted(names))


def test_what_is_left_out_is_counted_and_named(tmp_path):
    lay(tmp_path, "cat", "dog")
    for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "cat/.DS_Store"):
        (tmp_path / junk).touch()
    lay(tmp_path, "__MACOSX/cat", "cat/.thumbs", "@eaDir")
    (tmp_path / "dog/._0.png").touch()
    (tmp_path / "dog/link").symlink_to(tmp_path / "cat")
    for name in ("dog/a.dng", "dog/b.DNG", "notes.txt", "LICENSE"):
        (tmp_path / name).touch()
    splits = datasets.load("folder", tmp_path)
    assert len(splits.pool) + len(splits.test) == 10
    assert splits.notes == (
        "Left out 4 files of an operating system: '.DS_Store', 'Thumbs.db', 'desktop.ini' and 1 "
        "more.",
        "Left out 2 files of the kind .dng, which is not read as an image: 'dog/a.dng', "
        "'dog/b.DNG'.",
        "Left out 1 file of the kind .txt, which is not read as an image: 'notes.txt'.",
        "Left out 1 file without a suffix, which would tell that it is an image: 'LICENSE'.",
        "Left out 2 folders of an operating system: '@eaDir', '__MACOSX'.",
        "Left out 1 hidden folder: 'cat/.thumbs'.",
        "Left out 1 hidden image: 'dog/._0.png'.",
        "Left out 1 linked folder (links are not followed): 'dog/link'.",
    )


def test_images_whose_names_are_not_utf8_are_counted(tmp_path):
    lay(tmp_path, "cat", "dog")
    name = os.fsencode(tmp_path / "cat") + b"/K\xf6ln.png"
    try:
        shutil.copy(tmp_path / "cat" / "0.png", name)
    except OSError:  # of a file system that has UTF-8 alone
        pytest.skip("no such names here")
    splits = datasets.load("folder", tmp_path)
    assert len(splits.pool) + len(splits.test) == 10
    assert splits.notes[0] == r"Left out 1 image not named in UTF-8: 'cat/K\udcf6ln.png'."


@pytest.mark.parametrize("flat", [False, True])
def test_files_of_systems_are_counted_beside_splits_and_among_loose_images(tmp_path, flat):
    if flat:
        lay(tmp_path, ".", "deep", count=3)
    else:
        lay_splits(tmp_path, "train", "test")
    for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", ".hidden"):
        (tmp_path / junk).touch()
    lay(tmp_path, "__MACOSX", "System Volume Information")
    notes = datasets.load("folder", tmp_path, classes=["cat", "dog"]).notes
    assert notes[:4] == (
        "Left out 3 files of an operating system: '.DS_Store', 'Thumbs.db', 'desktop.ini'.",
        "Left out 1 file of the kind .txt, which is not read as an image: 'notes.txt'.",
        "Left out 2 folders of an operating system: 'System Volume Information', '__MACOSX'.",
        "Left out 1 hidden file: '.hidden'.",
    )
    shutil.rmtree(tmp_path / ("deep" if flat else "train"))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    if flat:
        with pytest.raises(
            DataError,
            match=r"\.png, .*at any depth, but there are none\. It holds 3 files of an op",
        ):
            datasets.load("folder", tmp_path, classes=["cat", "dog"])


def test_classes_that_only_the_test_set_has(tmp_path):
    lay_splits(tmp_path, "train")
    lay_splits(tmp_path, "test", classes=("Cat", "dog"))
    splits = datasets.load("folder", tmp_path)
    absent, alike = splits.notes
    assert absent == "The test set holds classes without a labelled image in the pool: 'Cat' (5)."
    assert alike.startswith("The classes 'Cat' and 'cat' differ in how they are written alone")


@pytest.mark.parametrize("name", ["_rejected", "Trash", "to sort"])
def test_folders_that_may_hold_what_is_not_to_be_read_are_pointed_at(tmp_path, name):
    lay(tmp_path, "cat", "dog", name)
    splits = datasets.load("folder", tmp_path)
    assert name in splits.pool.classes
    assert any(f"The folder {name!r} is counted as a class" in note for note in splits.notes)


def manifest(root, text, encoding="utf-8"):
    (root / "m.csv").write_bytes(text.encode(encoding))


def test_words_for_missing_in_a_manifest(tmp_path):
    lay(tmp_path, "i", count=8)
    labels = ["a", "b", "a ", " b", "NA", "n/a", "", "null"]
    rows = "\n".join(f"i/{k}.png,{label}" for k, label in enumerate(labels))
    manifest(tmp_path, f"path, label\n{rows}\n")
    splits = datasets.load("folder", tmp_path, manifest="m.csv", test_share=0.5)
    assert splits.pool.classes == ("a", "b")
    assert (len(splits.pool), len(splits.test)) == (6, 2)
    (note,) = splits.notes
    assert note.startswith("4 of 8 images of m.csv are unlabelled: their label is empty (1), 'NA'")
    named = datasets.load("folder", tmp_path, manifest="m.csv", missing_labels=["NA"])
    assert named.pool.classes == ("a", "b", "n/a", "null")


def test_encoding_and_splits_of_a_manifest(tmp_path):
    lay(tmp_path, "i", count=8)
    words = ["Training", "train", "Test", "testing", "dev", "validation", "NA", ""]
    rows = "\n".join(f"i/{k}.png,{'Käfer' if k % 2 else 'Biene'},{w}" for k, w in enumerate(words))
    for encoding in ("latin-1", "utf-16"):
        manifest(tmp_path, f"path,label,split\n{rows}\n", encoding)
        if encoding == "latin-1":
            with pytest.raises(DataError, match=r"m\.csv to be text in UTF-8 .* `data.encoding`"):
                datasets.load("folder", tmp_path, manifest="m.csv")
        splits = datasets.load(
            "folder", tmp_path, manifest="m.csv", encoding=encoding if encoding < "m" else None
        )
        assert splits.pool.classes == ("Biene", "Käfer")
        assert (len(splits.pool), len(splits.test), len(splits.validation)) == (4, 2, 2)
        assert splits.notes == ("2 of 8 images of m.csv name no split: in the pool.",)


def test_images_that_a_manifest_does_not_list(tmp_path):
    lay(tmp_path, "i", count=12)
    rows = "\n".join(f"i/{k}.png,{'ab'[k % 2]}" for k in range(10))
    manifest(tmp_path, f"path,label\n{rows}\n")
    splits = datasets.load("folder", tmp_path, manifest="m.csv")
    assert splits.notes == ("Left out 2 images that m.csv does not list: 'i/10.png', 'i/11.png'.",)
    with pytest.warns(UserWarning, match="Left out 2 images that m.csv does not list"):
        assert len(datasets.load_to_score("folder", tmp_path, manifest="m.csv")) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\ni/0.png,a,b\n", "2 values, one per column, but got 3, line 2 of"),
        ("path,label,split\ni/0.png,a\n", "3 values, one per column, but got 2, line 2 of"),
        ("path,label,label\ni/0.png,a,b\n", "columns path, label and perhaps split"),
        ("path,label\ni/0.png,a  b\ni/1.png,a b\n", "more than spaces .*'a  b' and 'a b'"),
    ],
)
def test_manifests_that_lose_something_are_refused(tmp_path, text, message):
    lay(tmp_path, "i")
    manifest(tmp_path, text)
    with pytest.raises(DataError, match=message):
        datasets.load("folder", tmp_path, manifest="m.csv")
    with pytest.raises(ConfigError, match=r"`data.layout` to be auto with a manifest"):
        datasets.load("folder", tmp_path, manifest="m.csv", layout="classes")


def test_folders_of_runs_are_no_classes(tmp_path):
    lay(tmp_path, "cat", "dog", "runs/margin/seed-0/pictures")
    (tmp_path / "runs/margin/seed-0/ledger.sqlite").touch()
    splits = datasets.load("folder", tmp_path)
    assert splits.pool.classes == ("cat", "dog")
    assert splits.notes == ("Left out 1 run folder: 'runs/margin/seed-0'.",)


def test_named_classes_and_splits_in_other_spellings(tmp_path):
    lay(tmp_path, "2023/may", "2024")
    splits = datasets.load("folder", tmp_path, classes=["dog", "cat"])
    assert (len(splits.pool), len(splits.test)) == (10, 0)  # by date: nothing is labelled
    assert set(splits.pool.labels) == {-1}
    lay_splits(tmp_path / "photos", "Training", "Testing")
    splits = datasets.load("folder", tmp_path / "photos", classes=["dog", "cat", "cow"])
    assert splits.pool.classes == ("dog", "cat", "cow")
    assert {id_.split("/")[0] for id_ in splits.test.ids} == {"Testing"}


@pytest.mark.parametrize(
    "name", ["dataset" * 60 + "q", "9" * 60, "1" * 60 + "q", "jan" + "1" * 60 + "q", "imgs1" * 60]
)
def test_no_name_takes_long_to_be_told_from_a_split(name):
    """What has several readings takes twice as long with each letter."""
    assert split_of(name) is None
    assert not are_no_classes([name])


@pytest.mark.parametrize(
    "tops", [("seen", "query"), ("public", "private"), ("set1", "set2", "set3")]
)
def test_folders_that_all_hold_the_same_folders_are_refused(tmp_path, tops):
    lay_splits(tmp_path, *tops)
    with pytest.raises(DataError, match="holds the same folders, 'cat', 'dog', which may be the"):
        datasets.load("folder", root=tmp_path)
    splits = datasets.load("folder", root=tmp_path, layout="classes")
    assert splits.pool.classes == tuple(sorted(tops))


def test_the_same_years_within_each_class_are_no_classes(tmp_path):
    lay(tmp_path, "cat/2023", "cat/2024", "dog/2023", "dog/2024")
    assert datasets.load("folder", root=tmp_path).pool.classes == ("cat", "dog")


def test_a_class_whose_name_is_not_utf8_is_to_be_renamed(tmp_path):
    lay(tmp_path, "cat", "dog")
    try:
        (tmp_path / "cat").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    except OSError:  # of a file system that has UTF-8 alone
        pytest.skip("no such names here")
    with pytest.raises(DataError, match="Rename what is not named in UTF-8") as caught:
        datasets.load("folder", tmp_path)
    assert "Remove" not in str(caught.value)
