"""Labels of several splits that are numbers: those that stand for none, by the option for it."""

import pyarrow as pa

from upslope.datasets.split_labels import read_split_labels


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
