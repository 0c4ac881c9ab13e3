"""Class tables of masks: encodings, delimiters, lines that do not fit."""

import pytest

from upslope import datasets
from upslope.datasets.mask_classes import read_mask_classes
from upslope.errors import DataError

TEXT = "name,id\nGrund,0\nZähne,1\n"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (TEXT.encode(), None),
        (TEXT.encode("utf-8-sig"), None),
        (TEXT.encode("utf-16"), None),
        (TEXT.encode("latin-1"), "latin-1"),
        (TEXT.replace(",", ";").encode("cp1252"), "cp1252"),
    ],
)
def test_names_in_every_encoding(tmp_path, data, encoding):
    path = tmp_path / "classes.csv"
    path.write_bytes(data)
    assert read_mask_classes(path, encoding).classes == ("Grund", "Zähne")


def test_an_unnamed_encoding_is_asked_for(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    path = tmp_path / "classes.csv"
    path.write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(
        DataError, match=r"byte 0xe4 at offset 17, line 3, .*`data.encoding`.*'Zähne,1'"
    ):
        datasets.load("mask-folder", tmp_path)
    with pytest.raises(DataError, match="images"):  # the table is read, and nothing is there
        datasets.load("mask-folder", tmp_path, encoding="latin-1")


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    """The last of the two counted, without a word."""
    path = tmp_path / "classes.csv"
    path.write_text("name,id,id\nroad,0,1\nsky,1,0\n", encoding="utf-8")
    with pytest.raises(DataError, match="'id' is there twice"):
        read_mask_classes(path)


def test_a_name_with_a_comma_needs_quotes(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("name,id\nroad, 0,1\nother,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"2 cells in line 2 of .* got more"):
        read_mask_classes(path)


def test_the_line_of_excel_about_the_delimiter_is_no_header(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("sep=;\nname;id\nroad, wet;0\nsky;1\n", encoding="utf-8")
    assert read_mask_classes(path).classes == ("road, wet", "sky")
    path.write_text("sep=;\nname;id\nroad;0\nsky;x\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 4 of"):
        read_mask_classes(path)
