from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest

from upslope.errors import RunError
from upslope.files import to_json, write_text
from upslope.report.text_tables import csv_text, markdown_table


def test_json_has_null_in_place_of_what_is_no_number() -> None:
    value = {"a": [1.5, math.nan, (math.inf, True)], 2: "é", "path": Path("x")}
    text = to_json(value)
    assert text.endswith("}\n")

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": [1.5, None, [None, True]], "2": "é", "path": "x"}


def test_text_is_written_as_it_is_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "text"
    write_text(file, "old")
    write_text(file, "é\r\nb\n")
    assert file.read_bytes() == "é\r\nb\n".encode()
    assert [path.name for path in file.parent.iterdir()] == ["text"]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "text"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert file.read_text() == "old"
    with pytest.raises(RunError, match=re.escape(str(file / "inside"))):
        write_text(file / "inside", "text")


def test_markdown_has_as_many_marks_as_columns() -> None:
    lines = markdown_table(("a", "b", "c"), [("x", "1", "2")], text_columns=2).split("\n")
    assert lines == ["| a | b | c |", "| --- | --- | ---: |", "| x | 1 | 2 |"]


def test_csv_reads_back() -> None:
    rows = [["a,b", 'say "x"', "1"], ["", "two\nlines", "2"]]
    text = csv_text(("p", "q", "r"), rows)
    assert list(csv.reader(io.StringIO(text))) == [["p", "q", "r"], *rows]
    assert "\r" not in text
