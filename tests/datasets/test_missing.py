"""Words for a missing label: which they are, and that they are told with counts."""

import pytest

from upslope.datasets.missing import class_folder_notes, is_missing, missing_notes


@pytest.mark.parametrize(
    "word",
    ["", " ", "NA", "N/A", "n/a", "nan", "NaN", "null", "NULL", "None", "none", "?", "-", "<NA>",
     "#N/A", "\\N", " NA ", "#N/A N/A", "1.#QNAN", "-1.#IND", "NA_character_", None],
)  # fmt: skip
def test_words_for_missing(word):
    assert is_missing(word)


@pytest.mark.parametrize("word", ["a", "Na", "0", "no", "nano", "+", "unknown", "NAN 1"])
def test_classes_are_not_missing(word):
    assert not is_missing(word)


def test_words_of_ones_own_replace_the_list_and_empty_stays_missing():
    assert not is_missing("None", [])
    assert is_missing("", [])
    assert is_missing("unknown", ["unknown"])
    assert not is_missing("NA", ["unknown"])


def test_notes_count_each_word_and_say_how_to_decide_otherwise():
    (note,) = missing_notes(["a", "NA", "NA ", "?", "", None, "b"])
    assert note.startswith("5 of 7 rows are unlabelled")
    assert "empty (2), '?' (1), 'NA' (2)" in note
    assert "`data.missing_labels`" in note
    (note,) = missing_notes(["a", ""], what="images")
    assert note == "1 of 2 images are unlabelled: their label is empty (1)."
    assert missing_notes(["a", "b"]) == ()


def test_doubtful_words_stay_classes_and_are_pointed_at():
    (note,) = missing_notes(["cat", "Unknown", "Unknown"])
    assert note.startswith("2 of 3 rows are of the class 'Unknown', which is counted as a class")
    assert missing_notes(["cat", "Unknown"], []) == ()


def test_minus_one_beside_whole_numbers_is_pointed_at():
    (note,) = missing_notes(["-1", "0", "1", "1"])
    assert "1 of 4 rows are of the class '-1'" in note
    assert "data.missing_labels" in note
    assert not missing_notes(["-1", "1", "1"])  # two classes by their signs
    assert not missing_notes(["-1", "-2", "0", "1"])
    assert not any("class '-1'" in note for note in missing_notes(["-1", "0", "1"], ["-1"]))


def test_folders_named_by_a_word_for_no_label_are_pointed_at():
    for name in ("none", "NA", "?", "unknown", "to_label", "Not labelled"):
        (note,) = class_folder_notes(["cat", name, "dog"])
        assert note.startswith(f"The folder {name!r} is counted as a class.")
    assert not class_folder_notes(["cat", "dog", "background"])


@pytest.mark.parametrize(
    "word",
    ["unbekannt", "k.A.", "inconnu", "desconocido", "s/d", "неизвестно", "未知", "無", "–",
     "(null)", "'NA'", '"unknown"', "[n/a]", "nan.", "nAn", "Nan", "N\\A", "no data",
     "\u200b", "NIL", "...", "\u2026", "____", "????", "**", "to do", "pending", "N/D"],
)  # fmt: skip
def test_words_of_other_languages_and_forms_are_pointed_at(word):
    (note,) = missing_notes(["cat", "dog", word])
    assert f"1 of 3 rows are of the class {word!r}" in note


def test_marks_for_no_label_beside_whole_numbers_are_pointed_at():
    for mark in ("-9", "-999", "99", "999"):
        (note,) = missing_notes([mark, "0", "1", "2"])
        assert f"1 of 4 rows are of the class {mark!r}" in note
    assert not missing_notes([str(i) for i in range(100)])
    assert not missing_notes(["98", "99", "100"])
    assert not missing_notes(["Na", "Cl"])
    assert not missing_notes(["(Na)", "Cl"])


def test_marks_for_no_label_beside_names_are_pointed_at():
    for mark in ("-1", "-9", "99", "999"):
        (note,) = missing_notes(["cat", mark, "dog"])
        assert f"1 of 3 rows are of the class {mark!r}" in note
    assert not missing_notes(["route 1", "99", "route 2"])
