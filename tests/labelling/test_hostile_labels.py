"""Labels of strangers: what takes memory without end, or breaks a parser, is one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from upslope.errors import DataError
from upslope.labelling.annotators.brush import decode_brush
from upslope.labelling.annotators.files import COLUMNS, SHEET, FilesAnnotator
from upslope.labelling.label_studio_export import read_label_studio_labels
from upslope.labelling.outlines import read_outlines
from upslope.reading import limited_to

CLASSES = ("red", "blue")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("masks", '{"masks":' * 3000),
        ("masks", json.dumps({"masks": {"red": [0, 10**10]}, "size": [10**5, 10**5]})),
        ("masks", json.dumps({"masks": {"red": [0, 10**800]}, "size": [10**400, 10**400]})),
        ("boxes", json.dumps({"boxes": [["red", 10**400, 0, 1, 1]], "size": [8, 8]})),
        ("boxes", '{"boxes": [["red", NaN, 0, 1, 1]], "size": [8, 8]}'),
        ("boxes", '{"boxes": [["red"]], "size": [8, 8]}'),
    ],
)
def test_outlines_that_ask_for_too_much_are_one_error(kind: str, text: str) -> None:
    with pytest.raises(DataError):
        read_outlines(text, kind, CLASSES)


def test_a_mask_of_a_brush_takes_no_more_memory_than_it_may() -> None:
    side = 1 << 13
    count = 4 * side * side
    with limited_to(0.5), pytest.raises(DataError, match=r"0\.5 GiB of memory but its header asks"):
        decode_brush([*count.to_bytes(4, "big"), 0, 0, 0, 0], side, side)


@pytest.mark.parametrize("height", ["1e999", "-1e999", '"six"', "[]", "{}", "null"])
def test_sizes_of_label_studio_that_are_none_are_one_error(height: str) -> None:
    value = {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["red"]}
    region = {"type": "rectanglelabels", "from_name": "label", "value": value, "original_width": 8}
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [region]}]}
    sizes = f'"original_height": {height}, "original_width"'
    text = json.dumps([task]).replace('"original_width"', sizes)
    with pytest.raises(DataError, match=r"task 1 of export\.json"):
        read_label_studio_labels(Path("export.json"), json.loads(text), "boxes", CLASSES, ["a.png"])


def test_a_label_without_values_is_one_error() -> None:
    value = {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": []}
    region = {
        "type": "rectanglelabels", "from_name": "label", "value": value, "original_width": 8,
        "original_height": 8,
    }  # fmt: skip
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [region]}]}
    with pytest.raises(DataError, match=r"task 1 of export\.json"):
        read_label_studio_labels(Path("export.json"), [task], "boxes", CLASSES, ["a.png"])


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["a", "a.png", "1", "", "", "red", "ann", "1e999", ""], "`seconds` of 'a' to be a number"),
        (["a", "a.png", "1", "", "", "red", "ann", "nan", ""], "`seconds` of 'a' to be a number"),
        (["a", "a.png", "1", "", "x" * 200_000, "red", "ann", "1", ""], "a CSV file in .* but"),
    ],
)
def test_a_sheet_with_what_cannot_be_recorded_is_one_error(
    tmp_path: Path, cells: list[str], words: str
) -> None:
    (tmp_path / SHEET).write_text(f"{','.join(COLUMNS)}\n{','.join(cells)}\n", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        FilesAnnotator(tmp_path, "class", CLASSES, "ann").pull()
