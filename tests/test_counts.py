"""Counts with their nouns."""

from upslope.counts import format_count


def test_one_is_singular_and_every_other_number_plural() -> None:
    assert [format_count(n, "image") for n in (0, 1, 2, 1024)] == [
        *("0 images", "1 image", "2 images", "1,024 images")
    ]
    assert [format_count(2, noun) for noun in ("class", "box", "category", "day", "batch")] == [
        *("2 classes", "2 boxes", "2 categories", "2 days", "2 batches")
    ]
    assert format_count(1, "row is", "rows are") == "1 row is"
    assert format_count(3, "row is", "rows are") == "3 rows are"
