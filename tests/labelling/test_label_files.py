"""Labels as COCO's and Label Studio's JSON, and masks as files: what goes out comes back in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import make_squares
from PIL import Image

from upslope import datasets
from upslope.errors import ConfigError, DataError
from upslope.labelling.coco import export_coco
from upslope.labelling.image_names import ImageNames
from upslope.labelling.imports import import_labels
from upslope.labelling.mask_folders import export_masks
from upslope.labelling.outlines import boxes_text, masks_text, read_outlines
from upslope.labelling.project import Project, read_project
from upslope.labelling.settings import AnswerKind, ProjectSettings
from upslope.labelling.state import CANNOT_TELL, SKIP, AnswerLabel

CLASSES = ("red", "blue")
SIZE = (24, 24)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    make_squares(tmp_path / "squares", 6)
    return tmp_path


def _project(folder: Path, name: str, kind: AnswerKind, answers: dict[str, Any]) -> Path:
    settings = ProjectSettings(str(folder / "squares"), CLASSES, kind)
    with Project.create(folder / name, settings) as project:
        for id_, answer in answers.items():
            project.answer(id_, answer, author="ann")
        project.skip("square-005.png", CANNOT_TELL, author="ann")
    return folder / name


def _labels(project: Path) -> dict[str, AnswerLabel]:
    return dict(read_project(project)[1].labels(control=False))


def _masks(seed: int) -> dict[str, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    first = rng.random(SIZE) < 0.4
    return {"red": first, "blue": ~first & (rng.random(SIZE) < 0.5)}


def _again(folder: Path, kind: AnswerKind, source: Path) -> tuple[dict[str, AnswerLabel], int]:
    """The labels of a new project after an import, and how many samples had none."""
    settings = ProjectSettings(str(folder / "squares"), CLASSES, kind)
    with Project.create(folder / "again", settings) as project:
        count = import_labels(project, source)
    return _labels(folder / "again"), count.empty


ANSWERS: dict[AnswerKind, dict[str, Any]] = {
    "class": {"square-000.png": "red", "square-001.png": "blue"},
    "labels": {"square-000.png": ["red", "blue"], "square-001.png": ["blue"]},
    "boxes": {
        "square-000.png": boxes_text(SIZE, [("red", 1.5, 2.0, 3.25, 4.0), ("blue", 0, 0, 24, 24)]),
        "square-001.png": boxes_text(SIZE, [("blue", 1.0, 1.0, 2.0, 2.0)]),
    },
    "masks": {
        "square-000.png": masks_text(SIZE, _masks(0), CLASSES),
        "square-001.png": masks_text(SIZE, _masks(1), CLASSES),
    },
}


@pytest.mark.parametrize("kind", list(ANSWERS))
def test_coco_comes_back_as_it_was(squares: Path, kind: AnswerKind) -> None:
    project = _project(squares, "project", kind, ANSWERS[kind])
    count = export_coco(project, squares / "coco.json")
    assert (count.samples, count.passed) == (2, 1)
    assert _again(squares, kind, squares / "coco.json") == (_labels(project), 0)


def test_coco_of_masks_is_what_other_readers_expect(squares: Path) -> None:
    project = _project(squares, "project", "masks", ANSWERS["masks"])
    export_coco(project, squares / "squares" / "instances.json")
    record = json.loads((squares / "squares" / "instances.json").read_text())
    mask = _masks(0)["red"]
    entry = record["annotations"][0]
    assert entry["area"] == mask.sum()
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    across, down = columns.max() + 1 - left, rows.max() + 1 - top
    assert entry["bbox"] == [left, top, across, down]
    columnwise = np.repeat(
        np.arange(len(entry["segmentation"]["counts"])) % 2 == 1, entry["segmentation"]["counts"]
    )
    np.testing.assert_array_equal(columnwise.reshape(SIZE[::-1]).T, mask)
    splits = datasets.load(
        "coco", squares / "squares", target="masks", images=".", annotations="instances.json",
        test_annotations="instances.json",
    )  # fmt: skip
    drawn = splits.pool.targets([0])
    expected = np.where(mask, 1, np.where(_masks(0)["blue"], 2, 0))
    np.testing.assert_array_equal(np.asarray(drawn)[0], expected)


NOTHING: dict[AnswerKind, Any] = {
    "labels": [], "boxes": boxes_text(SIZE, []), "masks": masks_text(SIZE, {}, CLASSES)
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NOTHING))
def test_an_image_on_which_nothing_is_seen_has_no_object(squares: Path, kind: AnswerKind) -> None:
    project = _project(squares, "project", kind, {"square-000.png": NOTHING[kind]})
    assert export_coco(project, squares / "coco.json").samples == 1
    record = json.loads((squares / "coco.json").read_text())
    assert record["annotations"] == []
    assert _again(squares, kind, squares / "coco.json") == (_labels(project), 0)
    del record["images"][0]["upslope_empty"]  # as others write it: nobody may have looked
    (squares / "other.json").write_text(json.dumps(record))
    with Project(squares / "again") as again:
        assert import_labels(again, squares / "other.json").empty == 1


def _coco(folder: Path, *entries: dict[str, Any], image: dict[str, Any] | None = None) -> Path:
    record = {
        "images": [{"id": 1, "file_name": "a/square-000.png", "height": 24, "width": 24}],
        "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}],
        "annotations": [{"id": i, "image_id": 1, **entry} for i, entry in enumerate(entries)],
    }
    record["images"][0].update(image or {})  # type: ignore[attr-defined]
    path = folder / "foreign.json"
    path.write_text(json.dumps(record))
    return path


def test_polygons_become_masks_and_files_are_known_by_their_names(squares: Path) -> None:
    triangle = {"category_id": 7, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
    labels, _ = _again(squares, "masks", _coco(squares, triangle))
    ((id_, text),) = labels.items()
    masks = read_outlines(str(text), "masks", CLASSES).masks
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:12, 2:12] = True
    assert id_ == "square-000.png"
    assert masks is not None
    assert set(masks) == {"blue"}
    np.testing.assert_array_equal(masks["blue"], expected)


RED, BLUE = {"category_id": 3}, {"category_id": 7}
SQUARE = {"segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}


@pytest.mark.parametrize(
    ("kind", "entries", "image", "words"),
    [
        ("class", [RED, BLUE], {}, "--kind labels"),
        ("class", [{"category_id": 9}], {}, "category_id 9"),
        ("class", [RED], {"file_name": "other.png"}, "other.png"),
        ("boxes", [RED], {}, "1 have none"),
        ("boxes", [{**RED, "bbox": [1, 2, "x", 4]}], {}, "bbox"),
        ("boxes", [{**RED, "bbox": [20, 2, 30, 4]}], {}, "on 'a/square-000.png'.*does not lie in"),
        ("boxes", [{**RED, "bbox": [20, 2, 0, 4]}], {}, "does not lie in"),
        (
            "masks",
            [{**RED, "segmentation": [[30, 30, 40, 30, 40, 40]]}],
            {},
            "outline of red has none",
        ),
        ("boxes", [{**RED, **SQUARE, "bbox": [2, 2, 10, 10], "iscrowd": 1}], {}, "crowds"),
        ("boxes", [{**RED, "bbox": [1, 2, 3, 4]}], {"height": 25}, "for 24x25"),
        ("masks", [{**RED, "bbox": [1, 2, 3, 4]}], {}, "--kind boxes"),
    ],
)
def test_coco_that_says_something_else_is_refused(
    squares: Path, kind: AnswerKind, entries: list[dict[str, Any]], image: dict[str, Any],
    words: str,
) -> None:  # fmt: skip
    with pytest.raises(DataError, match=words):
        _again(squares, kind, _coco(squares, *entries, image=image))
    assert _labels(squares / "again") == {}


def test_masks_are_files_that_the_data_set_reads(squares: Path) -> None:
    project = _project(squares, "project", "masks", ANSWERS["masks"])
    assert export_masks(project, squares / "out").samples == 2
    splits = datasets.load("mask-folder", squares / "out", test_share=0.5)
    assert splits.pool.classes == ("background", "red", "blue")
    for part in (splits.pool, splits.test):
        assert part is not None
        masks = part.targets([0])
        given = _masks(0 if "square-000" in str(part.ids[0]) else 1)
        expected = np.where(given["red"], 1, np.where(given["blue"], 2, 0))
        np.testing.assert_array_equal(np.asarray(masks)[0], expected)


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_folder_of_masks_comes_back_pixel_for_pixel(squares: Path, is_moved: bool) -> None:
    answers = {**ANSWERS["masks"], "square-002.png": masks_text(SIZE, {}, CLASSES)}
    project = _project(squares, "project", "masks", answers)
    export_masks(project, squares / "out")
    folder = squares / "out"
    if is_moved:  # into folders of a split, as training needs them
        for kind in ("images", "masks"):
            (folder / kind).rename(folder / "all")
            (folder / kind).mkdir()
            (folder / "all").rename(folder / kind / "train")
    assert _again(squares, "masks", folder) == (_labels(project), 0)
    assert set(answers) == set(_labels(project))


def test_folders_of_masks_of_others(squares: Path) -> None:
    folder = squares / "out"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    (folder / "classes.csv").write_text("name,id\nbackground,0\nblue,7\nignore,9\ngreen,3\n")
    levels = np.zeros(SIZE, np.uint8)
    levels[:3], levels[5:7] = 7, 9
    Image.fromarray(levels).save(folder / "masks" / "square-000.png")
    for name in ("square-000.png", "square-001.png"):
        (folder / "images" / name).write_bytes((squares / "squares" / name).read_bytes())
    settings = ProjectSettings(str(squares / "squares"), CLASSES, "masks")
    with Project.create(squares / "again", settings) as project:
        count = import_labels(project, folder)
        assert (count.new, count.empty) == (1, 1)
        assert "1 part of masks that count nowhere" in " ".join(count.notes)
    expected = masks_text(SIZE, {"blue": levels == 7}, CLASSES)
    assert _labels(squares / "again") == {"square-000.png": expected}
    levels[5:7] = 3
    Image.fromarray(levels).save(folder / "masks" / "square-000.png")
    with Project(squares / "again") as project, pytest.raises(DataError, match="'green'"):
        import_labels(project, folder)
    (folder / "masks" / "square-000.png").rename(folder / "masks" / "other.png")
    with Project(squares / "again") as project, pytest.raises(DataError, match="'other'"):
        import_labels(project, folder)


def test_a_pixel_of_two_classes_is_no_mask_file(squares: Path) -> None:
    both = {name: np.ones(SIZE, dtype=bool) for name in CLASSES}
    text = masks_text(SIZE, both, CLASSES)
    project = _project(squares, "project", "masks", {"square-000.png": text})
    with pytest.raises(DataError, match="576 have two"):
        export_masks(project, squares / "out")
    assert not (squares / "out").exists()
    assert export_coco(project, squares / "coco.json").rows == 2
    assert _again(squares, "masks", squares / "coco.json")[0] == {"square-000.png": text}


def test_other_answers_are_no_mask_files(squares: Path) -> None:
    project = _project(squares, "project", "class", ANSWERS["class"])
    with pytest.raises(ConfigError, match="masks"):
        export_masks(project, squares / "out")


@pytest.mark.parametrize(
    "name",
    [
        "C:\\data\\squares\\square-000.png",
        "squares\\square-000.png",
        "/data/squares/square-000.png",
    ],
)
def test_names_of_windows_and_of_other_folders(squares: Path, name: str) -> None:
    path = _coco(squares, RED, image={"file_name": name})
    assert _again(squares, "class", path) == ({"square-000.png": 0}, 0)
    table = squares / "table.csv"
    table.write_text(f"id,label\n{name},blue\n")
    with Project(squares / "again") as project:
        assert import_labels(project, table).new == 1


def test_accented_letters_are_known_in_both_of_their_forms() -> None:
    """macOS writes them in two code points, others in one."""
    one, two = "caf\u00e9", "cafe\u0301"
    assert ImageNames([f"{one}/a.jpg", "b/a.jpg"]).match([f"{two}/a.jpg"], "x") == f"{one}/a.jpg"
    names = ImageNames([f"{one}.jpg", f"{two}.jpg"])
    assert names.match([f"{two}.jpg"], "x") == f"{two}.jpg"
    assert names.match([f"{one}.jpg"], "x") == f"{one}.jpg"
    with pytest.raises(DataError, match="2 have that name"):
        names.match([f"elsewhere/{two}.jpg"], "x")


def test_a_backslash_may_belong_to_a_name(squares: Path) -> None:
    for name in ("a\\b.png", "b.png"):
        Image.new("RGB", SIZE).save(squares / "squares" / name)
    path = _coco(squares, RED, image={"file_name": "a\\b.png"})
    assert _again(squares, "class", path) == ({"a\\b.png": 0}, 0)


def _tasks(folder: Path, *tasks: dict[str, Any]) -> Path:
    path = folder / "export.json"
    path.write_text(json.dumps(list(tasks)))
    return path


def _task(image: str, *choices: str | None, field: str = "colour") -> dict[str, Any]:
    annotations = [
        {
            "was_cancelled": choice is None,
            "result": []
            if choice is None
            else [{"from_name": field, "type": "choices", "value": {"choices": choice.split("+")}}],
        }
        for choice in choices
    ]
    return {"data": {"image": image}, "annotations": annotations}


@pytest.mark.parametrize(
    ("image", "id_"),
    [
        ("square-000.png", "square-000.png"),
        ("square-000.png?d=square-002.png", "square-000.png"),
        ("/data/local-files/?d=squares/square-000.png", "square-000.png"),
        ("/data/local-files/?d=C%3A%5Csquares%5Csquare-000.png", "square-000.png"),
        ("/data/upload/3/0a1b2c3d-square-000.png", "square-000.png"),
        ("/data/upload/3/0a1b2c3d-ü_1.png", "ü #1.png"),
        ("https://host/a%20b/square-000.png?x=1", "square-000.png"),
        ("https://[host/square-000.png", "square-000.png"),
        ("s3://bucket/squares/square-000.png", "square-000.png"),
        ("s3://bucket/ü #1.png", "ü #1.png"),
        ("gs://bucket/%C3%BC%20%231.png", "ü #1.png"),
        ("/tasks/7/presign/?fileuri=czM6Ly9idWNrZXQvc3F1YXJlLTAwMC5wbmc=", "square-000.png"),
        ("100%25.png", "100%25.png"),
        ("s3://bucket/more/sub/same.png", "sub/same.png"),
    ],
)
def test_label_studio_names_files_in_its_ways(squares: Path, image: str, id_: str) -> None:
    for name in ("ü #1.png", "100%25.png", "same.png", "sub/same.png"):
        (squares / "squares" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", SIZE).save(squares / "squares" / name)
    nothing = {"data": {"image": "square-001.png"}, "annotations": []}
    path = _tasks(squares, _task(image, "blue"), nothing)
    assert _again(squares, "class", path) == ({id_: 1}, 1)


CANNOT = {"from_name": "passed", "type": "choices", "value": {"choices": [CANNOT_TELL]}}


def test_label_studio_skips_come_in_and_become_labels_later(squares: Path) -> None:
    path = _tasks(
        squares,
        _task("square-000.png", None),
        {"data": {"image": "square-001.png"}, "annotations": [{"result": [CANNOT]}]},
        _task("square-002.png", None, "blue"),
    )
    settings = ProjectSettings(str(squares / "squares"), CLASSES)
    with Project.create(squares / "again", settings) as project:
        count = import_labels(project, path)
        assert (count.new, count.corrected, count.empty, count.passed) == (1, 0, 0, 2)
        reasons = {
            id_: [a.reason for a in by.values()] for id_, by in project.state.answers.items()
        }
        assert reasons == {
            "square-000.png": [SKIP], "square-001.png": [CANNOT_TELL], "square-002.png": [""]
        }  # fmt: skip
        assert import_labels(project, path).new == 0
        _tasks(squares, _task("square-000.png", "red"), _task("square-002.png", None))
        count = import_labels(project, path)
        assert (count.new, count.corrected, count.passed) == (0, 2, 1)
        assert project.state.labels(control=False) == {"square-000.png": 0}
        assert (project.state.tally.labelled, project.state.tally.passed) == (1, 2)
    assert _labels(squares / "again") == {"square-000.png": 0}  # read anew from the log


def test_label_studio_sets_and_boxes(squares: Path) -> None:
    path = _tasks(squares, _task("square-000.png", "red+blue"))
    assert _again(squares, "labels", path)[0] == {"square-000.png": [1, 1]}
    box = {
        "from_name": "b", "type": "rectanglelabels", "original_width": 24, "original_height": 24,
        "value": {"x": 25, "y": 50, "width": 50, "height": 25, "rectanglelabels": ["red"]},
    }  # fmt: skip
    task = {"data": {"image": "square-001.png"}, "annotations": [{"result": [box]}]}
    (squares / "boxes").mkdir()
    (squares / "boxes" / "squares").symlink_to(squares / "squares")
    labels, _ = _again(squares / "boxes", "boxes", _tasks(squares, task))
    assert labels == {"square-001.png": boxes_text(SIZE, [("red", 6, 12, 12, 6)])}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (_task("square-000.png", "red", "blue"), "differ"),
        (_task("square-000.png", "green"), "'square-000.png': Expected one of the classes"),
        ({"data": {"image": "square-000.png", "mask": "square-001.png"},
          "annotations": _task("", "red")["annotations"]}, "image means 'square-000.png', mask"),
        ({"data": {"image": "square-000.png"},
          "annotations": [{"result": [{"from_name": "c", "type": "choices",
                                       "value": {"choices": "red"}}]}]}, "a list of names"),
        (_task("other.png", "red"), "other.png"),
        ({"image": "square-000.png", "choice": "red"}, "JSON-MIN"),
        ({"data": {"image": "square-000.png"}, "annotations": [{"result": 3}]}, "result"),
        ({"data": {"x": 3}, "annotations": []}, "name an image"),
        ({"data": {"image": "square-000.png"},
          "annotations": [{"result": [{"from_name": "p", "type": "polygonlabels"}]}]},
         "polygonlabels"),
        ({"data": {"image": "square-000.png"},
          "annotations": [{"result": [{"from_name": "p", "type": "choices"}]}]}, "KeyError"),
    ],
)  # fmt: skip
def test_label_studio_that_says_something_else_is_refused(
    squares: Path, task: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        _again(squares, "class", _tasks(squares, task))
    assert _labels(squares / "again") == {}


@pytest.mark.parametrize("text", ["", "{", "3", '{"images": 3}', "[3]", "[" * 3000])
def test_json_that_is_neither_is_refused(squares: Path, text: str) -> None:
    (squares / "bad.json").write_text(text)
    with pytest.raises(DataError):
        _again(squares, "class", squares / "bad.json")


def test_a_table_of_boxes_comes_back(squares: Path) -> None:
    from upslope.labelling.exports import export_table

    project = _project(squares, "project", "boxes", ANSWERS["boxes"])
    export_table(project, squares / "labels.csv")
    assert _again(squares, "boxes", squares / "labels.csv")[0] == _labels(project)


def test_a_file_name_of_two_images_is_refused(squares: Path) -> None:
    (squares / "squares" / "more").mkdir()
    Image.new("RGB", SIZE).save(squares / "squares" / "more" / "square-000.png")
    with pytest.raises(DataError, match="2 have that name"):
        _again(squares, "class", _coco(squares, RED))


def test_boxes_that_rounding_puts_beyond_an_edge_end_there(squares: Path) -> None:
    """COCO rounds left and width to hundredths, each by itself."""
    path = _coco(squares, {**RED, "bbox": [-0.01, 2, 24.01, 22.01]})
    ((_, text),) = _again(squares, "boxes", path)[0].items()
    assert text == boxes_text(SIZE, [("red", 0, 2, 24, 22)])


def test_two_names_of_one_image_are_refused(squares: Path) -> None:
    """One of the two is another image of the same name, whose label this one would get."""
    path = _coco(squares, RED)
    record = json.loads(path.read_text())
    record["images"].append({**record["images"][0], "id": 2, "file_name": "b/square-000.png"})
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"'a/square-000\.png' and 'b/square-000\.png' both mean"):
        _again(squares, "class", path)


def test_a_key_that_is_there_twice_is_refused(squares: Path) -> None:
    path = _coco(squares, RED)
    path.write_text(
        path.read_text().replace('"category_id": 3', '"category_id": 3, "category_id": 7')
    )
    with pytest.raises(DataError, match="there twice"):
        _again(squares, "class", path)


def _outline(type_: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    result = {"from_name": "label", "type": type_, "value": value, **size, **more}
    return {"data": {"image": "square-000.png"}, "annotations": [{"result": [result]}]}


BOX = {"x": 25, "y": 50, "width": 50, "height": 25, "rectanglelabels": ["red"]}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (_outline("rectanglelabels", {**BOX, "x": -25}), "-25% to 25%"),
        (_outline("rectanglelabels", {**BOX, "x": 75}), "75% to 125%"),
        (_outline("rectanglelabels", {**BOX, "x": float("nan")}), "nan%"),
        (_outline("rectanglelabels", {**BOX, "rotation": 3}), "rotated"),
        (_outline("rectanglelabels", BOX, image_rotation=90), "rotated image"),
        (_outline("rectanglelabels", {**BOX, "rectanglelabels": ["red", "blue"]}), "one class"),
        (_outline("rectanglelabels", BOX, original_width=48), "for 48x24"),
        (_outline("rectanglelabels", {**BOX, "rectanglelabels": ["green"]}), "'green'"),
    ],
)  # fmt: skip
def test_boxes_of_label_studio_that_do_not_fit_are_refused(
    squares: Path, task: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        _again(squares, "boxes", _tasks(squares, task))


def test_choices_beside_boxes_are_not_dropped(squares: Path) -> None:
    task = _outline("rectanglelabels", BOX)
    task["annotations"][0]["result"] += _task("", "bad", field="quality")["annotations"][0][
        "result"
    ]
    with pytest.raises(DataError, match="results of the types choices"):
        _again(squares, "boxes", _tasks(squares, task))


def test_choices_may_be_ticked_in_any_order(squares: Path) -> None:
    path = _tasks(squares, _task("square-000.png", "red+blue", "blue+red"))
    assert _again(squares, "labels", path)[0] == {"square-000.png": [1, 1]}


def test_masks_of_names_that_are_no_classes_are_refused() -> None:
    """They were left out without a word where Label Studio's form had other names."""
    with pytest.raises(DataError, match="'green'"):
        masks_text(SIZE, {"green": np.ones(SIZE, dtype=bool)}, CLASSES)
