"""Labels of several splits that are numbers: those that stand for none, by the option for it."""

import pyarrow as pa
import pytest

from upslope.datasets.split_labels import read_split_labels
from upslope.errors import DataError


def read(train, test=(0, 1), names=None, words=None):
    columns = {"train": pa.chunked_array([train]), "test": pa.chunked_array([test])}
    stated = dict.fromkeys(columns, names)
    return read_split_labels(columns, stated, "label", "a.parquet", words)


def test_numbers_among_the_words_for_no_label_are_unlabelled():
    names, labels, (note,) = read([0, 1, 99, -1], words=["99"])
    assert names == ("0", "1")
    assert labels["train"].tolist() == [0, 1, -1, -1]
    assert "2 of 4 samples of train are unlabelled" in note
    assert "among `data.missing_labels`" in note


def test_floats_among_them_too():
    assert read([0.0, 1.0, 99.0], words=["99"])[1]["train"].tolist() == [0, 1, -1]


def test_stated_names_among_the_words_are_no_classes():
    names, labels, _ = read([0, 1, 2, 7], (0, 2), ("cat", "unknown", "dog"), ["unknown", "7"])
    assert names == ("cat", "dog")
    assert labels["train"].tolist() == [0, -1, 1, -1]
    assert labels["test"].tolist() == [0, 1]


def test_a_word_is_a_name_before_it_is_a_number():
    names, labels, _ = read([0, 1, 2], (0, 2), ("a", "b", "c"), ["1"])
    assert names == ("a", "b", "c")
    assert labels["train"].tolist() == [0, 1, 2]


def test_without_the_option_numbers_stay_classes():
    names, labels, notes = read([0, 1, 2], (0, 2))
    assert (names, labels["train"].tolist(), notes) == (("0", "1", "2"), [0, 1, 2], ())


@pytest.mark.parametrize("takes_classes", [True, False])
def test_the_option_classes_is_advised_where_there_is_one(takes_classes):
    column = pa.chunked_array([["cat", "", None]])
    stated = {"data.classes" if takes_classes else "train": None}
    with pytest.raises(DataError, match=r"at least 2 .* but got \['cat'\]") as error:
        read_split_labels({"train": column}, stated, "label", "a")
    assert ("data.classes" in str(error.value)) == takes_classes


def test_names_of_the_option_classes_need_not_all_have_a_label():
    """One class that is labelled so far was refused, with the advice to name the classes."""
    stated = {"data.classes": ("cat", "None", "dog")}
    column = pa.chunked_array([["dog", "", "None", None]])
    names, labels, notes = read_split_labels({"train": column}, stated, "cls", "a.tar")
    assert names == ("cat", "None", "dog")
    assert labels["train"].tolist() == [2, -1, 1, -1]
    assert notes[0].startswith("2 of 4 samples are unlabelled")
    with pytest.raises(DataError, match=r"among the `data\.classes` .* but got \['owl'\]"):
        read_split_labels({"train": pa.chunked_array([["owl"]])}, stated, "cls", "a.tar")


STATED = ("cat", "ant", "dog", "bee")


@pytest.mark.parametrize("names", [None, STATED])
def test_names_of_several_splits_are_places_among_those_stated(
    names: tuple[str, ...] | None,
) -> None:
    """In the order of the names that files state, else of the names themselves."""
    cells = {
        "train": ["dog", "cat", None, "dog", "ant"],
        "validation": [],
        "test": ["ant", "cat", None, "cat"],
        "extra": ["bee"],
    }
    columns = {
        split: pa.chunked_array([pa.array(part, pa.string())]) for split, part in cells.items()
    }
    stated = dict.fromkeys(cells, names)
    classes, labels, _ = read_split_labels(columns, stated, "label", "here")
    assert classes == (names or ("ant", "bee", "cat", "dog"))
    assert list(labels) == list(cells)
    for split, part in cells.items():
        assert labels[split].tolist() == [-1 if c is None else classes.index(c) for c in part]


def test_numbers_in_one_split_and_text_in_another_are_refused() -> None:
    columns = {"train": pa.chunked_array([[0, 1]]), "test": pa.chunked_array([["0", "1"]])}
    with pytest.raises(DataError, match="in every split but got int64, string"):
        read_split_labels(columns, dict.fromkeys(columns), "label", "here")


def test_splits_that_state_other_names_are_refused_by_the_first_that_differs() -> None:
    columns = {"train": pa.chunked_array([[0, 1]]), "test": pa.chunked_array([[0, 1]])}
    names = {"train": ("a", "b", "c"), "test": ("a", "c")}
    with pytest.raises(DataError, match="states 3 and test 2, first differing in 'b' and 'c'"):
        read_split_labels(columns, names, "label", "here")
