"""`upslope label` on the command line, but for the page itself."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from pictures import make_patterns, make_squares
from PIL import Image
from typer.testing import CliRunner

from forked import Forked, until
from upslope.cli import app
from upslope.files import write_text
from upslope.labelling.project import Project, read_project


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["label", *map(str, arguments)], prog_name="upslope")
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_init_to_predictions(here: Path) -> None:
    colours = make_squares(here / "squares", 30)
    said = run("init", "p", "--data", "squares", "--classes", "red, blue", "--control", "0.25")
    assert "30 samples of squares, 2 classes" in said
    assert "upslope label serve p" in said
    settings, _ = read_project(here / "p")
    assert settings.classes == ("red", "blue")
    assert settings.data == str(here / "squares")
    assert "not measured yet" in run("status", "p")

    lines = [f"{id_},{colours[id_]}" for id_ in list(colours)[:12]]
    (here / "old.csv").write_text("\n".join(["id,label", *lines, "square-020.png,"]) + "\n")
    said = run("import", "p", "old.csv")
    assert "12 labels, 0 corrections" in said
    assert "1 row has no label and says nothing" in said
    standing = json.loads(run("status", "p", "--json"))
    assert (standing["labelled"], standing["imported"]) == (12, 12)
    assert standing["classes"] == {"red": 6, "blue": 6}

    assert "12 samples with a label" in run("export", "p", "labels.csv")
    assert "12 images" in run("export", "p", "sorted")
    assert len(list((here / "sorted" / "red").iterdir())) == 6
    assert "30 predictions by a model of 12 labels" in run("predict", "p", "out.csv")
    with (here / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"]: row["prediction"] for row in rows} == colours
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)
    assert sum(row["label"] != "" for row in rows) == 12

    run("close-control", "p")
    assert "closed and trained on" in run("status", "p")


def test_an_import_counts_skips_apart_from_labels(here: Path) -> None:
    make_squares(here / "squares", 4)
    run("init", "p", "--data", "squares", "--classes", "red,blue")
    (here / "old.csv").write_text(
        "id,label\nsquare-000.png,red\nsquare-001.png,skip\nsquare-002.png,cannot tell\n"
    )
    said = run("import", "p", "old.csv")
    assert "recorded 1 label, 0 corrections" in said
    assert "2 samples were skipped or could not be told" in said


def test_labels_in_the_data_are_taken_in(here: Path) -> None:
    make_squares(here / "d" / "red", 3)
    make_squares(here / "d" / "unlabelled", 4)
    said = run("init", "p", "--data", "d", "--classes", "red,blue", "--kind", "labels")
    assert "3 labelled already" in said
    _, state = read_project(here / "p")
    assert list(state.labels(control=False).values()) == [[1, 0]] * 3


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["init", "p", "--data", "squares"], 2, "--classes cat,dog,bird"),
        (["init", "p", "--data", "nothing", "--classes", "a,b"], 3, "'/"),
        (["init", "p", "--data", "squares", "--classes", "a"], 2, "`--classes` to be two or more"),
        (["init", "p", "--data", "squares", "--classes", '"a,b'], 2, "double quotes"),
        (["init", "p", "--data", "squares", "--classes", "a\nb,c"], 2, "double quotes"),
        (["init", "p", "--data", "squares", "--classes", "a,b", "--seed", "-1"], 2, "`--seed`"),
        (["init", "p", "--data", "squares", "--classes", "a;b,c", "--kind", "labels"], 2, "a;b"),
        (["init", "p", "--data", "squares", "--classes", "none,c", "--kind", "labels"], 2, "none"),
        (
            ["init", "p", "--data", "squares", "--classes", "a,b", "--strategy", "margine"],
            2,
            "margin",
        ),
        (["init", "p", "--data", "squares", "--classes", "a,b", "--strategy", "ll4al"], 2, "own"),
        (["status", "squares"], 6, "labelling project"),
        (["serve", "squares"], 6, "labelling project"),
        (["export", "squares", "x.csv"], 6, "labelling project"),
    ],
)
def test_refusals(here: Path, arguments: list[str], code: int, what: str) -> None:
    if arguments[0] == "serve":
        pytest.importorskip("starlette", reason="needs the extra `label`: starlette")
    make_squares(here / "squares", 3)
    assert what in run(*arguments, code=code)
    assert not (here / "p").exists()


def test_labels_that_come_into_the_data_later_are_taken_in(here: Path) -> None:
    (here / "t.csv").write_text("id,text,label\n1,good,\n2,bad,\n3,odd,\n")
    run("init", "p", "--data", "t.csv", "--classes", "yes,no")
    (here / "t.csv").write_text("id,text,label\n1,good,yes\n2,bad,no\n3,odd,\n")
    assert "2 labels of the data are new" in run("next", "p", "--count", "0")
    assert read_project(here / "p")[1].labels(control=False) == {"1": 0, "2": 1}
    assert "labels of the data" not in run("next", "p", "--count", "0")


def test_answered_images_that_are_gone_are_told(here: Path) -> None:
    make_squares(here / "squares", 4)
    run("init", "p", "--data", "squares", "--classes", "a,b")
    with Project(here / "p") as project:
        for k in range(3):
            project.answer(f"square-00{k}.png", "a", author="me")
    assert "in the data any more" not in run("next", "p", "--count", "0")
    (here / "squares" / "square-001.png").unlink()
    said = run("next", "p", "--count", "0")
    assert "1 answered sample is not in the data any more, first 'square-001.png'" in said


def test_images_that_were_replaced_under_their_names_are_told(here: Path) -> None:
    make_squares(here / "squares", 4)
    run("init", "p", "--data", "squares", "--classes", "red,blue")
    rows = [f"square-00{k}.png,red" for k in range(3)]
    (here / "old.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    run("import", "p", "old.csv")
    assert "other content" not in run("next", "p", "--count", "0")
    (here / "squares/square-000.png").touch()  # copied elsewhere, as it is
    shutil.copy(here / "squares/square-003.png", here / "squares/square-001.png")
    said = run("next", "p", "--count", "0")
    assert "1 sample has other content than when it was answered: 'square-001.png'" in said
    assert "upslope label relabel p" in said
    assert len(read_project(here / "p")[1].labels(control=False)) == 3


def test_an_answer_that_stands_in_a_sheet_is_not_one_of_a_new_image(here: Path) -> None:
    make_patterns(here / "squares", 8)
    run("init", "p", "--data", "squares", "--classes", "red,blue")
    run("next", "p", "--count", "2")
    sheet = here / "p/files/to-label.csv"
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "label": "red"} for row in rows)
    assert "recorded 2 answers" in run("next", "p", "--count", "0")
    make_squares(here / "squares", 8)
    for _ in range(2):
        assert "2 samples have other content than when they" in run("next", "p", "--count", "0")


def test_rows_that_were_written_anew_under_their_ids_are_told(here: Path) -> None:
    (here / "t.csv").write_text("id,text,label\n1,good,\n2,bad,\n")
    run("init", "p", "--data", "t.csv", "--classes", "yes,no")
    (here / "old.csv").write_text("id,label\n1,yes\n2,no\n")
    run("import", "p", "old.csv")
    (here / "t.csv").write_text("id,text,label\n1,good,yes\n2,worse,\n")
    said = run("next", "p", "--count", "0")
    assert "1 sample has other content than when it was answered: '2'" in said


def test_folders_of_classes_say_nothing_of_boxes(here: Path) -> None:
    make_squares(here / "d" / "red", 3)
    make_squares(here / "d" / "blue", 3)
    said = run("init", "p", "--data", "d", "--classes", "red,blue", "--kind", "boxes")
    assert "already" not in said
    assert read_project(here / "p")[1].events == 0


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_objects_of_one_class_are_asked_and_counted(here: Path, kind: str) -> None:
    make_squares(here / "d", 3)
    said = run("init", "p", "--data", "d", "--classes", "bird", "--kind", kind)
    assert "3 samples of d, 1 class next: upslope label watch p --tool label-studio" in said
    name = min(file.name for file in (here / "d").iterdir())
    with Image.open(here / "d" / name) as image:
        size = dict(zip(("width", "height"), image.size, strict=True))
    outline = {"bbox": [0, 0, 2, 3], "segmentation": [[0, 0, 2, 0, 2, 3, 0, 3]], "area": 6}
    coco = {
        "images": [{"id": 1, "file_name": name, **size}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **outline}],
        "categories": [{"id": 1, "name": "bird"}],
    }
    (here / "coco.json").write_text(json.dumps(coco))
    run("import", "p", "coco.json")
    assert json.loads(run("status", "p", "--json"))["classes"] == {"bird": 1}
    assert "2 tasks for files" in run("next", "p", "--tool", "files")
    run("export", "p", "out.json")
    assert json.loads((here / "out.json").read_text())["categories"][0]["name"] == "bird"


@pytest.mark.parametrize("kind", ["class", "labels"])
def test_one_class_is_too_few_where_a_model_is_trained(here: Path, kind: str) -> None:
    make_squares(here / "d", 3)
    said = run("init", "p", "--data", "d", "--classes", "bird", "--kind", kind, code=2)
    assert "two or more distinct names but got ['bird']" in said


def test_a_class_may_hold_a_comma_in_quotes(here: Path) -> None:
    make_squares(here / "squares", 3)
    run("init", "p", "--data", "squares", "--classes", '"red, or so", a"b ,c')
    assert read_project(here / "p")[0].classes == ("red, or so", 'a"b', "c")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["other/squares"], "data /.*/squares, not other/squares"),
        (["squares", "--classes", "a,b,c"], "classes a,b, not a,b,c"),
        (["squares", "--kind", "labels"], "kind class, not labels"),
        (["squares", "--strategy", "badge", "--twice", "0.2"], "strategy .* twice 0.0, not 0.2"),
    ],
)
def test_a_project_is_not_gone_on_with_under_another_command(
    here: Path, arguments: list[str], what: str
) -> None:
    pytest.importorskip("starlette", reason="needs the extra `label`: starlette")
    for folder in ("squares", "other/squares"):
        make_squares(here / folder, 3)
    run("init", "squares-labels", "--data", "squares", "--classes", "a,b")
    assert re.search(what, run("start", *arguments, "--no-browser", code=2))


def test_nothing_of_a_project_becomes_an_image_to_label(here: Path) -> None:
    make_squares(here / "squares", 3)
    run("init", "squares/p", "--data", "squares", "--classes", "a,b")
    run("next", "squares/p", "--count", "2")
    assert any((here / "squares" / "p" / "files" / "images").iterdir())
    assert "3 samples" in run("init", "q", "--data", "squares", "--classes", "a,b")
    with Project(here / "q") as project:
        project.answer("square-000.png", "a", author="me")
    assert "outside of" in run("export", "q", "squares/sorted", code=3)
    assert not (here / "squares" / "sorted").exists()


def test_links_are_exported_as_files_and_hidden_classes_are_not(here: Path) -> None:
    make_squares(here / "squares", 2)
    (here / "squares" / "link.png").symlink_to("square-000.png")
    run("init", "p", "--data", "squares", "--classes", "a,b")
    with Project(here / "p") as project:
        project.answer("link.png", "a", author="me")
    run("export", "p", "sorted")
    file = here / "sorted" / "a" / "link.png"
    assert not file.is_symlink()
    assert file.read_bytes() == (here / "squares" / "square-000.png").read_bytes()
    for name in (".a", "Unlabelled"):
        run("init", f"p{name}", "--data", "squares", "--classes", f"{name},b")
        assert "can name folders" in run("export", f"p{name}", "hidden", code=2)


def test_a_project_and_its_data_may_be_moved(here: Path) -> None:
    make_squares(here / "squares", 4)
    make_squares(here / "others" / "deep", 4)
    run("init", "p", "--data", "squares", "--classes", "a,b")
    with Project(here / "p") as project:
        project.answer("square-000.png", "a", author="me")
        project.answer("square-001.png", "b", author="me")
    (here / "elsewhere").mkdir()
    (here / "p").rename(here / "elsewhere" / "p")
    (here / "squares").rename(here / "elsewhere" / "photos")
    (here / "elsewhere" / "photos" / "square-001.png").unlink()
    assert "upslope label move PROJECT" in run("export", "elsewhere/p", "sorted", code=3)
    assert "none of the 2 answered ones" in run("move", "elsewhere/p", "others", code=3)
    said = run("move", "elsewhere/p", "elsewhere/photos")
    assert "3 samples" in said
    assert "1 answered samples are not there, first 'square-001.png'" in said
    settings, state = read_project(here / "elsewhere" / "p")
    assert settings.data == str(here / "elsewhere" / "photos")
    assert len(state.answers) == 2
    assert "2 samples" in run("export", "elsewhere/p", "labels.CSV")


def test_images_that_cannot_be_read_are_told_where_tasks_go_out(here: Path) -> None:
    make_squares(here / "squares", 3)
    (here / "squares" / "broken.png").write_bytes(b"x")
    run("init", "p", "--data", "squares", "--classes", "a,b")
    said = run("next", "p", "--count", "5")
    assert "1 sample cannot be read and is not asked, first 'broken.png'" in said
    assert "1 sample, which is not asked" in run("status", "p")


def test_an_image_that_is_repaired_is_asked(here: Path) -> None:
    make_squares(here / "squares", 3)
    repaired = (here / "squares" / "square-001.png").read_bytes()
    (here / "squares" / "square-001.png").write_bytes(repaired[:60])  # a download broken off
    (here / "squares" / "removed.png").write_bytes(b"x")
    run("init", "p", "--data", "squares", "--classes", "a,b")
    assert "2 tasks for files" in run("next", "p")
    (here / "squares" / "square-001.png").write_bytes(repaired)
    (here / "squares" / "removed.png").unlink()
    said = run("next", "p")
    assert "1 task for files" in said
    assert "cannot be read" not in said
    assert "square-001.png" in (here / "p" / "files" / "to-label.csv").read_text()
    assert "unreadable" not in run("status", "p")


def test_refusals_of_a_project(here: Path) -> None:
    make_squares(here / "squares", 3)
    run("init", "p", "--data", "squares", "--classes", "a,b")
    assert "there is one" in run("init", "p", "--data", "squares", "--classes", "a,b", code=6)
    assert ".json" in run("export", "p", "labels.xlsx", code=2)
    assert "0 images with 0 objects" in run("export", "p", "coco.json")
    assert "labels of two classes" in run("predict", "p", "out.csv", code=3)
    assert "a file of labels or a folder" in run("import", "p", "nothing.csv", code=3)
    with Project(here / "p"):
        (here / "old.csv").write_text("id,label\nsquare-000.png,a\n")
        assert "alone" in run("import", "p", "old.csv", code=6)
        run("status", "p")  # reading goes on meanwhile


def test_the_page_needs_its_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "uvicorn" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    make_squares(here / "squares", 3)
    said = run("squares", "--classes", "a,b", code=2)
    assert "uvicorn" in said
    assert "pip install '.[label]'" in said
    assert not (here / "squares-labels").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_a_tool_ends_in_order(here: Path, number: signal.Signals) -> None:
    make_squares(here / "squares", 6)
    run("init", "p", "--data", "squares", "--classes", "red,blue", "--control", "0")
    process = Forked(watch, here / "p", log=here / "log")
    until(lambda: (here / "p" / "files" / "to-label.csv").is_file())
    sheet = (here / "p" / "files" / "to-label.csv").read_text().splitlines()
    columns = sheet[0].split(",")
    cells = sheet[1].split(",")
    cells[columns.index("label")] = "red"
    write_text(
        here / "p" / "files" / "to-label.csv", "\n".join([sheet[0], ",".join(cells), *sheet[2:]])
    )
    process.send(number)
    assert process.end() == 0
    assert len(read_project(here / "p")[1].answers) == 1  # taken in before the end


def watch(project: Path) -> int:
    arguments = ["label", "watch", str(project), "--tool", "files", "--every", "60"]
    return CliRunner().invoke(app, arguments, prog_name="upslope").exit_code


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found"), OSError("no username")])
def test_a_user_without_a_login_name_says_who_answers(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As in a container whose user has no entry in its list of users."""
    make_squares(here / "squares", 4)
    run("init", "p", "--data", "squares", "--classes", "red,blue")

    def fail() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", fail)
    for command in (("serve", "p", "--no-browser"), ("next", "p", "--count", "0")):
        assert "--name NAME" in run(*command, code=2)
    run("next", "p", "--count", "0", "--name", "ann")


def test_the_page_is_served_while_a_browser_of_the_terminal_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_squares(here / "squares", 4)
    run("init", "p", "--data", "squares", "--classes", "red,blue")
    is_served, seen = threading.Event(), []

    def serve(_session: object, listener: socket.socket, *_: object) -> None:
        listener.close()
        is_served.set()

    monkeypatch.setattr("upslope.labelling.server.serve", serve)

    def browse(_url: str) -> None:
        seen.append(is_served.wait(10))

    monkeypatch.setattr("webbrowser.open", browse)
    run("serve", "p", "--port", "0")
    until(lambda: bool(seen))
    assert seen == [True]
