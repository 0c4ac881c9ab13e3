"""What people are shown of the splits: classes with counts, unlabelled samples, notes."""

import numpy as np

from upslope import datasets
from upslope.datasets import Splits, class_counts, overview
from upslope.datasets.arrays import ArrayDataset
from upslope.datasets.subset import Subset


def array(labels, classes):
    labels = np.array(labels, dtype=np.int64)
    ids = tuple(str(i) for i in range(len(labels)))
    return ArrayDataset("toy", ids, classes, np.zeros((len(labels), 2), np.float32), labels)


def test_classes_with_counts_of_each_split_and_notes():
    everything = array([0, 1, 1, -1, 0, 1, -1], ("ant", "bee"))
    splits = Splits(Subset(everything, [0, 1, 2, 3, 6]), Subset(everything, [4]), notes=("So.",))
    assert overview(splits) == (
        ("pool", "5: ant (1), bee (2); unlabelled (2)"),
        ("test", "1: ant (1), bee (0)"),
        ("note", "So."),
    )
    assert str(splits).splitlines() == [f"{title}: {text}" for title, text in overview(splits)]
    assert class_counts(Subset(splits.pool, [1, 4])) == {"ant": 0, "bee": 1}


def test_classes_that_the_pool_has_not_are_named():
    everything = array([0, 0, 1, -1], ("ant", "bee"))
    splits = Splits(Subset(everything, [0, 3]), Subset(everything, [1, 2]))
    (note,) = (text for title, text in overview(splits) if title == "note")
    assert note == "No labelled sample of the pool is of 'bee', and test samples are."
    unlabelled = Splits(Subset(everything, [3]), Subset(everything, [1, 2]))
    assert all(title != "note" for title, _ in overview(unlabelled))


def test_many_classes_are_a_range():
    many = array([0, 0, *range(30)], tuple(f"c{i}" for i in range(31)))
    assert overview(Splits(many, many))[0] == (
        "pool", "32: 31 classes of 0 (c30) to 3 samples, 1 of them without any"
    )  # fmt: skip


def test_many_classes_of_one_size_are_one_number():
    many = array([*range(30), *range(30)], tuple(f"c{i}" for i in range(30)))
    assert overview(Splits(many, many))[0] == ("pool", "60: 30 classes of 2 samples each")


def test_labels_and_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,wet,dry,split\n1,1,0,train\n2,1,,train\n3,1,1,test\n", encoding="utf-8")
    splits = datasets.load("table", path, kind="labels", target="wet,dry")
    assert overview(splits)[:2] == (("pool", "2: wet (2), dry (0); unlabelled (1)"),
                                    ("test", "1: wet (1), dry (1)"))  # fmt: skip
    splits = datasets.load("table", path, kind="numbers", target="wet,dry")
    assert overview(splits)[0] == ("pool", "2: wet, dry; unlabelled (1)")
    assert class_counts(splits.pool) is None


def test_notes_pass_the_options_that_all_data_sets_have():
    splits = Splits(array([0, 1] * 8, ("a", "b")), array([0, 1], ("a", "b")), notes=("Kept.",))
    assert datasets.apply_common_options(splits, "toy", limit=8, validation=0.25).notes == (
        "Kept.",
    )


def test_classes_that_differ_in_how_they_are_written_alone_are_named():
    for names, alike in (
        (("Cat", "cat", "dog"), "'Cat' and 'cat'"),
        (("hot dog", "hot_dog", "Hot-Dog "), "'Hot-Dog ' and 'hot dog' and 'hot_dog'"),
        (("01", "1", "2"), "'01' and '1'"),
        (("1", "1.0", "2"), "'1' and '1.0'"),
        (("K\u00e4fer", "Ka\u0308fer"), "'Ka\u0308fer' and 'K\u00e4fer'"),
        (("cat", "c\u0430t"), "'cat' and 'c\u0430t'"),
        (
            ("KOT", "\u043a\u043e\u0442", "\u041a\u043e\u0442"),
            "'KOT' and '\u041a\u043e\u0442' and '\u043a\u043e\u0442'",
        ),
        (("\u03b1-helix", "a helix"), "'a helix' and '\u03b1-helix'"),
        (("hot\u2013dog", "hot-dog"), "'hot-dog' and 'hot\u2013dog'"),
        (("\u0661", "1"), "'1' and '\u0661'"),
        (("1", "1e0", "2"), "'1' and '1e0'"),
        (("100", "1E+2", "1.00e2"), "'1.00e2' and '100' and '1E+2'"),
        (("0.5", ".50"), "'.50' and '0.5'"),
    ):
        everything = array([0, 1], names)
        (note,) = Splits(everything, everything).notes
        assert note.startswith(f"The classes {alike} differ in how they are written alone")
    for names in (
        ("-1", "1"), ("1-2", "12"), ("a b", "ab"), ("1.5", "15"), ("cat", "cats"), ("1e9999", "1"),
        ("1e1", "e1"), ("\u0431", "b"), ("\u03c0", "n"),
        ("\u043a\u043e\u0442", "\u043a\u043e\u0434"),
    ):  # fmt: skip
        everything = array([0, 1], names)
        assert not Splits(everything, everything).notes


def test_letters_of_classes_that_look_the_same_are_told_by_number():
    for names in (("cat", "c\u0430t"), ("K\u00e4fer", "Ka\u0308fer")):
        everything = array([0, 1], names)
        (note,) = Splits(everything, everything).notes
        assert note.endswith(f" They look alike and are {' and '.join(map(ascii, sorted(names)))}.")


def test_ids_that_look_alike_are_told():
    """As of files from two systems: each copy was a sample of its own, without a word."""
    ids = ["caf\u00e9.png", "cafe\u0301.png", "caf\u00e9.jpg", "b"]
    splits = Splits.from_arrays(np.eye(4), [0, 1, 0, 1], ids=ids)
    (note,) = [note for note in splits.notes if "looks like another" in note]
    assert r"first 'cafe\u0301.png' like 'caf\xe9.png'" in note
    apart = Splits.from_arrays(
        np.eye(2), [0, 1], np.ones((1, 2)), [1], ids=["caf\u00e9", "b"], test_ids=["cafe\u0301"]
    )
    assert any("1 id looks like another" in note for note in apart.notes)
