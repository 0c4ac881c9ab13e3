"""Labels out of a project and in again: what comes back is what was said."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pictures import make_squares
from typer.testing import CliRunner

from upslope import datasets
from upslope.cli import app
from upslope.errors import ConfigError, DataError, RunError
from upslope.files import FORMULA, plain_cell, safe_cell
from upslope.labelling.coco import export_coco
from upslope.labelling.exports import export_folders, export_table
from upslope.labelling.imported_labels import read_label_table
from upslope.labelling.imports import import_labels
from upslope.labelling.project import Project, read_project
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import CANNOT_TELL


@pytest.fixture
def squares(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A project over twelve squares, ten of them labelled, one passed."""
    colours = make_squares(tmp_path / "squares", 12)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    with Project.create(tmp_path / "project", settings) as project:
        for id_ in list(colours)[:10]:
            project.answer(id_, colours[id_], author="ann", seconds=1.25, note="=1+1", slice_="x")
        project.answer("square-000.png", "blue", author="bob")
        project.skip("square-010.png", CANNOT_TELL, author="ann")
    return tmp_path, {id_: colours[id_] for id_ in list(colours)[:10]}


def test_csv_holds_every_answer_and_comes_back_in(squares: tuple[Path, dict[str, str]]) -> None:
    folder, colours = squares
    count = export_table(folder / "project", folder / "labels.csv")
    assert (count.samples, count.rows, count.passed) == (10, 12, 1)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "id": "square-000.png", "label": "red", "author": "ann", "answer": "red", "reason": "",
        "seconds": "1.25", "note": "'=1+1", "slice": "x", "guess_shown": "",
    }  # fmt: skip
    second = next(row for row in rows if row["author"] == "bob")
    assert (second["answer"], second["label"]) == ("blue", "red")  # a tie: what was said first
    passed = next(row for row in rows if row["id"] == "square-010.png")
    assert (passed["label"], passed["reason"]) == ("", CANNOT_TELL)

    settings = read_project(folder / "project")[0]
    with Project.create(folder / "again", settings) as project:
        counts = import_labels(project, folder / "labels.csv")
        assert (counts.new, counts.corrected, counts.empty, counts.passed) == (10, 0, 0, 1)
        assert import_labels(project, folder / "labels.csv").new == 0
        assert project.state.tally.passed == 1
        (answer,) = project.state.answers["square-010.png"].values()
        assert (answer.label, answer.reason) == (None, CANNOT_TELL)
    labels = read_project(folder / "again")[1].labels(control=False)
    assert {id_: settings.classes[k] for id_, k in labels.items()} == colours  # type: ignore[index]


def test_parquet_has_types(squares: tuple[Path, dict[str, str]]) -> None:
    folder, _ = squares
    export_table(folder / "project", folder / "labels.parquet")
    table = pq.read_table(folder / "labels.parquet")
    assert table.num_rows == 12
    assert str(table.schema.field("seconds").type) == "double"
    assert str(table.schema.field("guess_shown").type) == "bool"
    assert table.column("note").to_pylist()[0] == "=1+1"


def test_folders_are_a_data_set_and_come_back_in(squares: tuple[Path, dict[str, str]]) -> None:
    folder, colours = squares
    count = export_folders(folder / "project", folder / "sorted")
    assert (count.samples, count.passed) == (10, 1)
    files = {
        path.name: path.parent.name for path in (folder / "sorted").rglob("*") if path.is_file()
    }
    assert files == colours
    splits = datasets.load("folder", folder / "sorted", test_share=0.4, duplicates="off")
    assert splits.pool.classes == ("blue", "red")
    settings = read_project(folder / "project")[0]
    with Project.create(folder / "again", settings) as project:
        assert import_labels(project, folder / "sorted").new == 10
    with pytest.raises(DataError, match="new or empty"):
        export_folders(folder / "project", folder / "sorted")
    (folder / "squares" / "square-003.png").unlink()
    with pytest.raises(DataError, match=r"1 are gone, first 'square-003\.png'"):
        export_folders(folder / "project", folder / "other")
    with pytest.raises(DataError, match=r"1 are gone, first 'square-003\.png'"):
        export_coco(folder / "project", folder / "other.json")


def test_label_sets_come_back_in(tmp_path: Path) -> None:
    make_squares(tmp_path / "squares", 3)
    settings = ProjectSettings(str(tmp_path / "squares"), ("a", "b", "c"), kind="labels")
    with Project.create(tmp_path / "one", settings) as project:
        project.answer("square-000.png", ["a", "c"], author="me")
        project.answer("square-001.png", [], author="me")
    export_table(tmp_path / "one", tmp_path / "labels.csv")
    with Project.create(tmp_path / "two", settings) as project:
        import_labels(project, tmp_path / "labels.csv")
        assert project.state.labels(control=False) == {
            "square-000.png": [1, 0, 1],
            "square-001.png": [0, 0, 0],
        }
    with pytest.raises(ConfigError, match="one class per sample"):
        export_folders(tmp_path / "one", tmp_path / "sorted")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("id,label\nnobody.png,red\n", r"first 'nobody\.png'"),
        ("id,label\nsquare-000.png,green\n", "'green'"),
        ("id,label\nsquare-000.png,red\nsquare-000.png,blue\n", "'red' and 'blue'"),
        ("id,label\nsquare-000.png\n", "2 cells in row 2"),
        ("id,label,Label\nsquare-000.png,red,blue\n", "one column label"),
        ("id,label,ID\nsquare-000.png,red,square-001.png\n", "one column id"),
        ("name,class\nsquare-000.png,red\n", "columns id and label"),
        (f"id,label\n{'x' * 200_000},red\n", "field larger than field limit"),
    ],
)
def test_what_cannot_be_taken_in_is_refused_as_a_whole(
    squares: tuple[Path, dict[str, str]], text: str, what: str
) -> None:
    folder, _ = squares
    (folder / "bad.csv").write_text(text)
    with Project(folder / "project") as project:
        before = project.state.events
        with pytest.raises(DataError, match=what):
            import_labels(project, folder / "bad.csv")
        assert project.state.events == before


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "sep=;\nid;label;note\nsquare-000.png;red\nsquare-001.png;blue;x\n"),
        ("utf-16", "ID\tLabel\nsquare-000.png\tred\nsquare-001.png\tblue\n"),
        ("utf-8", "id|label|more\nsquare-000.png|red||\nsquare-001.png|blue\n"),
    ],
)
def test_a_table_as_spreadsheets_save_it_is_taken_in(
    squares: tuple[Path, dict[str, str]], encoding: str, text: str
) -> None:
    folder, _ = squares
    (folder / "table.csv").write_text(text, encoding=encoding)
    assert read_label_table(folder / "table.csv", lambda *_: False) == [
        ("square-000.png", "red"),
        ("square-001.png", "blue"),
    ]


def test_a_table_in_another_encoding_is_refused(squares: tuple[Path, dict[str, str]]) -> None:
    folder, _ = squares
    (folder / "table.csv").write_text("id,label\ngrün.png,red\n", encoding="cp1252")
    with pytest.raises(
        DataError, match=r'line 2, .* Save it again as "CSV UTF-8": .* Nothing was recorded\.$'
    ):
        read_label_table(folder / "table.csv", lambda *_: False)


@pytest.fixture
def beetles(tmp_path: Path) -> tuple[Project, Path]:
    """A project over four images of classes and names that are not plain ASCII, and a table of
    labels."""
    (tmp_path / "data" / "Fühler").mkdir(parents=True)
    for id_ in make_squares(tmp_path / "squares", 4):
        shutil.copy(tmp_path / "squares" / id_, tmp_path / "data" / "Fühler" / f"größe{id_}")
    settings = ProjectSettings(str(tmp_path / "data"), ("Käfer", "Biene"))
    return Project.create(tmp_path / "project", settings), tmp_path / "table.csv"


@pytest.mark.parametrize("encoding", ["cp1252", "mac_roman", "cp850", "gb18030"])
@pytest.mark.parametrize("folder", ["Fühler/", "", "C:\\Bilder\\Fühler\\"])
def test_ids_and_classes_tell_the_encoding_of_a_table(
    beetles: tuple[Project, Path], encoding: str, folder: str
) -> None:
    project, table = beetles
    rows = [f"{folder}größesquare-{i:03d}.png;{('Käfer', 'Biene', '')[i]}" for i in range(3)]
    table.write_bytes("\r\n".join(["id;label", *rows]).encode(encoding))
    with project:
        with pytest.warns(UserWarning, match=rf"not in UTF-8\. It was read as {encoding}"):
            count = import_labels(project, table)
        labels = {id_: names for id_, (names, *_) in _said(project).items()}
    assert (count.new, count.empty) == (2, 1)
    assert labels == {
        "Fühler/größesquare-000.png": "Käfer",
        "Fühler/größesquare-001.png": "Biene",
    }


@pytest.mark.parametrize(
    "row", ["Fühler/größesquare-000.png,Käse", "Fühler/größe.png,Käfer", "Fühler/größe,Biene"]
)
def test_a_table_whose_encoding_nothing_tells_is_refused(
    beetles: tuple[Project, Path], row: str
) -> None:
    project, table = beetles
    table.write_text(f"id,label\n{row}\n", encoding="cp1252")
    with project, pytest.raises(DataError, match="ids and labels do not tell the encoding"):
        import_labels(project, table)


def _said(project: Project) -> dict[str, tuple[str, ...]]:
    """Return id -> the names that answers of the project come to."""
    classes = project.settings.classes
    return {
        id_: tuple(classes[answer.label] for answer in by_author.values())  # type: ignore[index]
        for id_, by_author in project.state.answers.items()
    }


def test_folders_that_are_no_classes_are_refused(squares: tuple[Path, dict[str, str]]) -> None:
    folder, _ = squares
    (folder / "sorted" / "green").mkdir(parents=True)
    with Project(folder / "project") as project, pytest.raises(DataError, match="'green'"):
        import_labels(project, folder / "sorted")


def test_names_that_lead_elsewhere_name_no_folder(tmp_path: Path) -> None:
    make_squares(tmp_path / "squares", 2)
    settings = ProjectSettings(str(tmp_path / "squares"), ("../up", "b"))
    with Project.create(tmp_path / "one", settings) as project:
        project.answer("square-000.png", "../up", author="me")
    with pytest.raises(ConfigError, match=r"'\.\./up'"):
        export_folders(tmp_path / "one", tmp_path / "sorted")
    assert not (tmp_path / "up").exists()


def test_folders_are_there_as_a_whole_or_not_at_all(
    squares: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a folder would be taken for the whole data set, and refused when exported again."""
    folder, colours = squares
    copied: list[object] = []

    def full(source: Path, target: Path) -> None:
        if len(copied) == 3:
            target.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(target))
        copied.append(shutil.copyfile(source, target))

    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copy2", full)
        with pytest.raises(RunError, match="it is full"):
            export_folders(folder / "project", folder / "sorted")
    assert len(copied) == 3
    assert {path.name for path in folder.iterdir()} == {"squares", "project"}
    export_folders(folder / "project", folder / "sorted")
    assert len([*folder.glob("sorted/*/*.png")]) == len(colours)


@pytest.mark.parametrize(
    "cell", ["-0,26", "=1", "'=1", "''=1", "-1", "'-1", "'", "'x", "x", "", "+x", "@", "'\t", "＝1"]
)
def test_cells_come_back_from_a_spreadsheet_as_they_were(cell: str) -> None:
    written = safe_cell(cell)
    assert plain_cell(written) == cell
    assert not written.startswith(FORMULA) or float(written.replace(",", "."))


def test_names_like_formulas_and_apostrophes_come_back(tmp_path: Path) -> None:
    make_squares(tmp_path / "squares", 2)
    names = ["=a.png", "'=a.png"]
    for path, name in zip(sorted((tmp_path / "squares").iterdir()), names, strict=True):
        path.rename(path.with_name(name))
    settings = ProjectSettings(str(tmp_path / "squares"), ("=x", "'=x"))
    with Project.create(tmp_path / "one", settings) as project:
        project.answer("=a.png", "'=x", author="me")
        project.answer("'=a.png", "=x", author="me")
    export_table(tmp_path / "one", tmp_path / "labels.csv")
    with Project.create(tmp_path / "two", settings) as project:
        import_labels(project, tmp_path / "labels.csv")
        assert project.state.labels(control=False) == {"=a.png": 1, "'=a.png": 0}


def test_a_table_may_name_images_by_their_files(squares: tuple[Path, dict[str, str]]) -> None:
    folder, _ = squares
    (folder / "labels.csv").write_text("id,label\nelsewhere/square-010.png,red\n")
    settings = read_project(folder / "project")[0]
    with Project.create(folder / "again", settings) as project:
        import_labels(project, folder / "labels.csv")
        assert list(project.state.answers) == ["square-010.png"]


def test_labels_that_do_not_count_are_told(squares: tuple[Path, dict[str, str]]) -> None:
    """What was answered before counts, and who imports something else has to know."""
    folder, colours = squares
    id_ = "square-001.png"
    other = "red" if colours[id_] == "blue" else "blue"
    (folder / "labels.csv").write_text(f"id,label\n{id_},{other}\n")
    with Project(folder / "project") as project:
        count = import_labels(project, folder / "labels.csv")
    assert (count.new, count.differing) == (1, (id_,))
    done = CliRunner().invoke(
        app, ["label", "import", str(folder / "project"), str(folder / "labels.csv")]
    )
    assert "1 labels differ from answers that were there" in done.stdout


def test_what_a_folder_of_classes_holds_besides_is_told(
    squares: tuple[Path, dict[str, str]],
) -> None:
    folder, _ = squares
    for name in ("red/square-000.png", "unlabelled/square-001.png", "square-002.png"):
        (folder / "sorted" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "squares" / Path(name).name, folder / "sorted" / name)
    (folder / "sorted" / "red" / "raw.dng").write_bytes(b"x")
    (folder / "sorted" / ".cache").mkdir()
    settings = read_project(folder / "project")[0]
    with Project.create(folder / "again", settings) as project:
        count = import_labels(project, folder / "sorted")
    assert (count.new, count.empty) == (1, 1)
    notes = " ".join(count.notes)
    assert "1 image in no folder of a class: 'square-002.png'" in notes
    assert "'red/raw.dng'" in notes


def test_folders_of_classes_are_sets_of_labels_or_no_outlines(tmp_path: Path) -> None:
    make_squares(tmp_path / "squares", 2)
    for name in ("a/square-000.png", "b/square-000.png", "b/square-001.png"):
        (tmp_path / "sorted" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "squares" / Path(name).name, tmp_path / "sorted" / name)
    settings = ProjectSettings(str(tmp_path / "squares"), ("a", "b"), kind="labels")
    with Project.create(tmp_path / "sets", settings) as project:
        import_labels(project, tmp_path / "sorted")
        assert project.state.labels(control=False) == {
            "square-000.png": [1, 1],
            "square-001.png": [0, 1],
        }
    settings = ProjectSettings(str(tmp_path / "squares"), ("a", "b"), kind="boxes")
    with (
        Project.create(tmp_path / "boxes", settings) as project,
        pytest.raises(DataError, match="folders of classes"),
    ):
        import_labels(project, tmp_path / "sorted")
