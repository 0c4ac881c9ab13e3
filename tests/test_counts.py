"""Counts with their nouns."""

from upslope.counts import format_count, list_some


def test_one_is_singular_and_every_other_number_plural() -> None:
    assert [format_count(n, "image") for n in (0, 1, 2, 1024)] == [
        *("0 images", "1 image", "2 images", "1,024 images")
    ]
    assert [format_count(2, noun) for noun in ("class", "box", "category", "day", "batch")] == [
        *("2 classes", "2 boxes", "2 categories", "2 days", "2 batches")
    ]
    assert format_count(1, "row is", "rows are") == "1 row is"
    assert format_count(3, "row is", "rows are") == "3 rows are"


def test_the_first_words_of_many_and_how_many_more_there_are() -> None:
    assert list_some([], 2) == ""
    assert list_some(["a", "b"], 2) == "a, b"
    assert list_some(["a", "b", "c"], 2) == "a, b and 1 more"
    assert list_some(["a"] * 2000, 1) == "a and 1,999 more"
