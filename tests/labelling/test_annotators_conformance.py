"""One suite for all tools beside the page: a task is there once, an answer comes back unchanged."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pictures import make_patterns
from studio import Studio, choice

from upslope.errors import DataError
from upslope.labelling.annotators import TOOLS
from upslope.labelling.annotators.base import AnnotationTask, Annotator
from upslope.labelling.annotators.files import FilesAnnotator
from upslope.labelling.exchange import Exchange
from upslope.labelling.outlines import boxes_text
from upslope.labelling.project import Project
from upslope.labelling.samples import open_samples, samples_of
from upslope.labelling.settings import ProjectSettings

CLASSES = ("red", "blue", "=cmd")
Write = Callable[[Annotator, str, str], None]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    one = Studio(folder, None)
    yield one
    one.kill()


@pytest.fixture(params=[TOOLS[0], pytest.param(TOOLS[1], marks=pytest.mark.slow)])
def tool(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Callable[[str], Annotator], Write]:
    """(a way to make a tool for a kind of answer, a person who answers in it)."""
    if request.param == "files":

        def make(kind: str) -> Annotator:
            return FilesAnnotator(tmp_path / "files", kind, CLASSES, "ann")  # type: ignore[arg-type]

        def write(_annotator: Annotator, id_: str, text: str) -> None:
            path = tmp_path / "files" / "to-label.csv"
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                if row["id"].removeprefix("'") == id_:
                    row["label"], row["seconds"] = text, "2.5"
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)

        return make, write
    studio: Studio = request.getfixturevalue("studio")

    def make_studio(kind: str) -> Annotator:
        return studio.annotator(f"{request.node.name}-{tmp_path.name}"[-50:], kind, CLASSES)

    def write_studio(annotator: Any, id_: str, text: str) -> None:
        if text == "skip":
            studio.answer(annotator, id_, [], was_cancelled=True, lead_time=2.5)
        elif text == "cannot tell":
            result = [{**choice(text)[0], "from_name": "passed"}]
            studio.answer(annotator, id_, result, lead_time=2.5)
        else:
            names = [] if text == "none" else text.split(";")
            studio.answer(annotator, id_, choice(*names), lead_time=2.5)

    return make_studio, write_studio


def tasks(*ids: str) -> list[AnnotationTask]:
    return [
        AnnotationTask(
            id_, i, "margin: rank 1", "image", 0.5, image=b"\x89PNG", media_type="image/png"
        )
        for i, id_ in enumerate(ids, 1)
    ]


def test_a_task_is_there_once_however_often_it_is_pushed(tool: Any) -> None:
    make, write = tool
    one = make("class")
    assert isinstance(one, Annotator)
    assert set(one.pushed()) == set()
    assert list(one.pull()) == []
    first = one.push(tasks("b.png", "a.png"))
    assert (first.new, first.there) == (2, 0)
    write(one, "a.png", "blue")
    again = make("class").push(tasks("a.png", "c.png", "b.png"))
    assert (again.new, again.there) == (1, 2)
    assert list(one.pushed()) == list(dict.fromkeys(one.pushed()))
    assert set(one.pushed()) == {"a.png", "b.png", "c.png"}
    (answer,) = one.pull()  # the push has not touched it
    assert (answer.id, answer.answer, answer.seconds) == ("a.png", "blue", 2.5)
    assert answer.author
    assert answer.time > 1.6e9


def test_answers_come_back_as_they_were_given(tool: Any) -> None:
    make, write = tool
    one = make("class")
    one.push(tasks("a.png", "=b.png", "c.png", "d.png"))
    for id_, text in (("a.png", "=cmd"), ("=b.png", "skip"), ("c.png", "cannot tell")):
        write(one, id_, text)
    got = {a.id: (a.answer, a.reason) for a in one.pull()}
    assert got == {
        "a.png": ("=cmd", ""), "=b.png": (None, "skip"), "c.png": (None, "cannot tell"),
    }  # fmt: skip
    assert {a.id: (a.answer, a.reason) for a in one.pull()} == got


def test_sets_of_labels_come_back_too(tool: Any) -> None:
    make, write = tool
    one = make("labels")
    one.push(tasks("a.png", "b.png"))
    write(one, "a.png", "red;blue")
    write(one, "b.png", "none")
    assert {a.id: sorted(a.answer or []) for a in one.pull()} == {
        "a.png": ["blue", "red"], "b.png": [],
    }  # fmt: skip


def test_answers_are_recorded_once_and_corrections_replace_them(tool: Any, tmp_path: Path) -> None:
    make, write = tool
    colours = make_patterns(tmp_path / "squares", 12)
    settings = ProjectSettings(str(tmp_path / "squares"), CLASSES)
    one = make("class")
    with Project.create(tmp_path / "p", settings) as project:
        samples = open_samples(settings.data, CLASSES)
        exchange = Exchange(project, samples, one)
        assert exchange.push(5).new == 5
        assert exchange.push(5).new == 5  # others than the first
        ids = list(one.pushed())
        assert len(ids) == 10
        for id_ in ids[:3]:
            write(one, id_, colours[id_])
        assert (exchange.pull().new, exchange.pull().same) == (3, 3)
        assert exchange.waiting() == 7
        write(one, ids[0], "=cmd")
        pulled = exchange.pull()
        assert (pulled.new, pulled.changed) == (0, 1)
        state = project.state
        assert {i: CLASSES[a.label] for i, b in state.answers.items() for a in b.values()} == {  # type: ignore[index]
            ids[0]: "=cmd", ids[1]: colours[ids[1]], ids[2]: colours[ids[2]],
        }  # fmt: skip
        assert all(a.seconds == 2.5 for b in state.answers.values() for a in b.values())
        again = Exchange(project, samples, make("class"))
        assert again.pull().same == 3
        assert again.push(5).new == 2


def test_an_answer_that_is_none_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    make_patterns(tmp_path / "squares", 6)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    one = FilesAnnotator(tmp_path / "f", "class", ("red", "blue"), "me")
    with Project.create(tmp_path / "p", settings) as project:
        exchange = Exchange(project, open_samples(settings.data, settings.classes), one)
        exchange.push(4)
        sheet = tmp_path / "f" / "to-label.csv"
        head, *rows = sheet.read_text().splitlines()
        place = head.split(",").index("label")
        cells = [next(csv.reader([row])) for row in rows]
        cells[0][place], cells[1][place] = "red", "green"
        with sheet.open("w", newline="") as file:
            csv.writer(file).writerows([head.split(","), *cells])
        with pytest.raises(DataError, match="green"):
            exchange.pull()
        assert not project.state.answers


def test_outlines_of_another_size_and_names_of_imports_are_refused(tmp_path: Path) -> None:
    make_patterns(tmp_path / "squares", 6)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"), "boxes")
    one = FilesAnnotator(tmp_path / "f", "boxes", ("red", "blue"), "me")
    with Project.create(tmp_path / "p", settings) as project:
        exchange = Exchange(project, samples_of(settings), one)
        exchange.push(2)
        sheet = tmp_path / "f" / "to-label.csv"

        def answer(size: tuple[int, int], author: str) -> None:
            with sheet.open(newline="") as file:
                rows = list(csv.DictReader(file))
            rows[0]["label"] = boxes_text(size, [("red", 1, 2, 3, 4)])
            rows[0]["author"] = author
            with sheet.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)

        for size, author, words in (
            ((48, 48), "ann", "24x24 pixels .* but they are for 48x48"),
            ((24, 24), "import: x.csv", "name that does not begin with 'import: '"),
        ):
            answer(size, author)
            with pytest.raises(DataError, match=words):
                exchange.pull()
            assert not project.state.answers
        answer((24, 24), "ann")
        assert exchange.pull().new == 1


def test_an_image_moved_into_a_folder_of_its_class_is_an_answer(tmp_path: Path) -> None:
    one = FilesAnnotator(tmp_path / "f", "class", ("red", "blue"), "me")
    one.push(tasks("a.png", "b.png"))
    images = tmp_path / "f" / "images"
    (images / "blue").mkdir()
    (images / "00002.png").rename(images / "blue" / "00002.png")
    assert [(a.id, a.answer) for a in one.pull()] == [("b.png", "blue")]
    (images / "green").mkdir()
    with pytest.raises(DataError, match="green"):
        one.pull()


def test_the_copy_of_an_image_is_called_as_what_it_holds(tmp_path: Path) -> None:
    annotator = FilesAnnotator(tmp_path, "class", CLASSES, "ann")
    annotator.push(
        [
            AnnotationTask(id_, i, "", "image", image=b"x", media_type=f"image/{kind}")
            for i, (id_, kind) in enumerate({"a.heic": "jpeg", "b.tif": "png"}.items())
        ]
    )
    assert [row["file"] for row in sheet_rows(annotator)] == ["00001.jpg", "00002.png"]


def test_a_column_that_a_spreadsheet_would_run_is_escaped_in_the_sheet_and_comes_back(
    tmp_path: Path,
) -> None:
    annotator = FilesAnnotator(tmp_path, "class", CLASSES, "ann")
    first, second = (
        AnnotationTask(id_, i, "", "row", None, cells={"=1+1": "7"}) for i, id_ in enumerate("ab")
    )
    annotator.push([first])
    annotator.push([second])
    with (tmp_path / "to-label.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["'=1+1"] for row in rows] == ["7", "7"]
    assert "=1+1" not in rows[0]


def sheet_rows(annotator: FilesAnnotator) -> list[dict[str, str]]:
    with (annotator.folder / "to-label.csv").open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def write_rows(annotator: FilesAnnotator, rows: list[list[str]]) -> None:
    with (annotator.folder / "to-label.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_a_new_image_takes_no_name_of_an_older_one(tmp_path: Path) -> None:
    """People delete rows, and whole sheets: an image under an old name would get its answer."""
    annotator = FilesAnnotator(tmp_path, "class", CLASSES, "ann")
    annotator.push(tasks("a.png", "b.png", "c.png"))
    rows = sheet_rows(annotator)
    write_rows(annotator, [list(rows[0]), *(list(row.values()) for row in rows[1:])])
    annotator.push(tasks("d.png"))
    files = {row["id"]: row["file"] for row in sheet_rows(annotator)}
    assert files == {"b.png": "00002.png", "c.png": "00003.png", "d.png": "00004.png"}
    (tmp_path / "images" / "red").mkdir()
    (tmp_path / "images" / "00004.png").rename(tmp_path / "images" / "red" / "00004.png")
    (tmp_path / "to-label.csv").unlink()
    annotator.push(tasks("e.png"))
    assert [row["file"] for row in sheet_rows(annotator)] == ["00005.png"]
    with pytest.raises(DataError, match=r"first 'red/00004\.png'"):
        annotator.pull()


@pytest.mark.parametrize("name", ["mine.png", "deep/00001.png"])
def test_an_image_in_a_folder_of_a_class_that_no_row_has_is_told(tmp_path: Path, name: str) -> None:
    annotator = FilesAnnotator(tmp_path, "class", CLASSES, "ann")
    annotator.push(tasks("a.png"))
    target = tmp_path / "images" / "red" / name
    target.parent.mkdir(parents=True)
    (tmp_path / "images" / "00001.png").rename(target)
    with pytest.raises(DataError, match="under the names in the column `file`"):
        annotator.pull()


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("id,file,label,label", "a.png,,red,blue", "one column label"),
        ("id,file,label", "a.png,,red\na.png,,blue", "'a.png' by ann"),
        ("id,file,label,seconds", "a.png,,red,inf", "`seconds` of 'a.png'"),
        ("id,file,label,seconds", "a.png,,red,nan", "`seconds` of 'a.png'"),
        ("id,file,label", "a.png,," + "x" * 140_000, "field larger"),
    ],
)
def test_a_sheet_that_says_two_things_is_refused(
    tmp_path: Path, header: str, row: str, words: str
) -> None:
    (tmp_path / "to-label.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError, match=words):
        FilesAnnotator(tmp_path, "class", CLASSES, "ann").pull()


def test_columns_of_the_data_are_not_those_of_the_sheet(tmp_path: Path) -> None:
    cells = {"text": "good", "why": "it is", "seconds": "9", "note": "theirs"}
    task = AnnotationTask("1", 1, "margin: rank 1", "row", 0.5, cells=cells)
    annotator = FilesAnnotator(tmp_path, "class", CLASSES, "ann")
    annotator.push([task])
    (row,) = sheet_rows(annotator)
    assert (row["why"], row["seconds"], row["text"]) == ("margin: rank 1", "", "good")
    assert (row["data: why"], row["data: seconds"], row["data: note"]) == ("it is", "9", "theirs")
    row["label"] = "red"
    write_rows(annotator, [list(row), list(row.values())])
    (answer,) = annotator.pull()
    assert (answer.seconds, answer.note) == (None, "")


@pytest.mark.parametrize(
    ("encoding", "delimiter", "first"),
    [("utf-8", ",", ""), ("utf-8-sig", ";", "sep=;\n"), ("utf-16", "\t", ""), ("utf-8", "|", "")],
)
def test_a_sheet_as_spreadsheets_save_it(
    tmp_path: Path, encoding: str, delimiter: str, first: str
) -> None:
    """Excel leaves out empty cells at the end of a row where all of its block of rows have none."""
    annotator = FilesAnnotator(tmp_path, "class", CLASSES, "ann")
    annotator.push(tasks("a.png", "b.png", "grün.png"))
    columns, *rows = [list(sheet_rows(annotator)[0]), *(r.values() for r in sheet_rows(annotator))]
    at = columns.index("label")
    answers = ["red", "", "blue"]
    lines = [
        [*list(row)[:at], *[text] * bool(text)] for row, text in zip(rows, answers, strict=True)
    ]
    text = "".join(f"{delimiter.join(cells)}\n" for cells in [columns, *lines])
    (tmp_path / "to-label.csv").write_text(first + text, encoding=encoding)
    assert [(a.id, a.answer) for a in annotator.pull()] == [("a.png", "red"), ("grün.png", "blue")]
    annotator.push(tasks("d.png"))
    assert [row["label"] for row in sheet_rows(annotator)] == [*answers, ""]


def test_a_sheet_with_other_letters_has_the_mark_by_which_excel_reads_it(tmp_path: Path) -> None:
    annotator = FilesAnnotator(tmp_path, "class", CLASSES, "ann")
    annotator.push(tasks("grün.png"))
    assert (tmp_path / "to-label.csv").read_bytes().startswith("\ufeff".encode())
    assert annotator.pushed() == {"grün.png"}


def test_two_columns_of_a_name_are_refused_as_one_of_them_would_be_lost(tmp_path: Path) -> None:
    (tmp_path / "to-label.csv").write_text("id,file,label,mine,mine\na.png,,red,1,2\n")
    with pytest.raises(DataError, match="one column mine"):
        FilesAnnotator(tmp_path, "class", CLASSES, "ann").pull()
