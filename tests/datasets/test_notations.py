"""Text that stands for dates and amounts, and text that does not."""

import pytest

from upslope.datasets.notations import first_amount, first_date, is_date


@pytest.mark.parametrize(
    "text",
    ["2020-01-31", "2020/1/3", "31.01.2020", "1/31/20", "2020-01", "10:30", "10:30:05.5",
     "2020-01-31T10:30:00Z", "2020-01-31 10:30", "31 Jan 2020", "January 31, 2020", "Mar 2020",
     "10:30 PM"],
)  # fmt: skip
def test_dates(text):
    assert is_date(text)


@pytest.mark.parametrize(
    "text", ["18-25", "2020", "1.2.3", "grade 1", "T1", "marble 20", "1/2", "a", ""]
)
def test_no_dates(text):
    assert not is_date(text)


def test_half_of_the_cells_decide():
    assert first_date({"never": 2, "2020-01-01": 1, "2020-01-02": 1}) == "2020-01-01"
    assert first_date({"never": 3, "2020-01-01": 1, "2020-01-02": 1}) is None


@pytest.mark.parametrize(
    "cells",
    [("5 kg", "7 kg"), ("5%", "7%"), ("$5", "$7"), ("1 000", "2 000"), ("1\u00a0000", "2\u202f000"),
     ("\u22121", "\u22122"), ("(5)", "(7)"), ("1'000", "2'500.50"), ("5 °C", "7,5 °C")],
)  # fmt: skip
def test_amounts(cells):
    assert first_amount(dict.fromkeys(cells, 3)) == cells[0]


@pytest.mark.parametrize(
    "cells", [("1st", "2nd", "3rd"), ("18-25", "26-35"), ("Q1", "Q2"), ("1a", "1b"), ("50+", "a")]
)
def test_no_amounts(cells):
    assert first_amount(dict.fromkeys(cells, 3)) is None
