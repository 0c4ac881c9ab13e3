from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest

from upslope.errors import RunError
from upslope.files import read_digested_json, to_json, write_digested_json, write_text
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


def test_no_flipped_bit_in_digested_json_changes_what_is_read(tmp_path: Path) -> None:
    file, data = tmp_path / "data.json", {"key": "k", "loss": [0.1, 2e-17], "name": "é"}
    write_digested_json(file, data)
    whole = file.read_bytes()
    assert read_digested_json(file) == data
    noticed = 0
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            read = read_digested_json(file)
            noticed += read is None
            # The name of the digest itself may be damaged: all else is then as it was.
            assert read is None or {k: read.get(k) for k in data} == data
    assert noticed > 7 * len(whole)


def test_json_without_a_digest_is_taken_and_what_is_none_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    assert read_digested_json(file) is None
    for text, expected in (('{"a": 1}', {"a": 1}), ("[1]", None), ("1", None), ("[" * 9999, None)):
        file.write_text(text)
        assert read_digested_json(file) == expected


def test_markdown_has_as_many_marks_as_columns() -> None:
    lines = markdown_table(("a", "b", "c"), [("x", "1", "2")], text_columns=2).split("\n")
    assert lines == ["| a | b | c |", "| --- | --- | ---: |", "| x | 1 | 2 |"]


def test_csv_reads_back() -> None:
    rows = [["a,b", 'say "x"', "1"], ["", "two\nlines", "2"]]
    text = csv_text(("p", "q", "r"), rows)
    assert list(csv.reader(io.StringIO(text))) == [["p", "q", "r"], *rows]
    assert "\r" not in text
