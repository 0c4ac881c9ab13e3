"""How a project's files are read: the options of the command, and messages that name them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_label_command import run
from typer.main import get_command

from upslope.cli import app
from upslope.datasets.argument_names import as_arguments, as_command_options
from upslope.labelling.project import Project, read_project
from upslope.labelling.samples import FolderImages, TableRows, samples_of
from upslope.labelling.settings import ProjectSettings, ReadingOptions

INIT = ("init", "p", "--data")
CLASSES = ("--classes", "good,bad")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options_of_init() -> set[str]:
    command = get_command(app).commands["label"].commands["init"]  # type: ignore[attr-defined]
    return {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize(
    ("name", "content", "arguments", "code"),
    [
        ("t.csv", "id,text,label\n1,a,great\n", (), 3),
        ("t.csv", "id,text\n1,a\n1,b\n", (), 3),
        ("t.csv", "id,text\n1,a\n,b\n", (), 3),
        ("t.csv", "text;a,b\nx;1,2\n", (), 3),
        ("t.csv", "text\nx\n", ("--target", "verdict"), 2),
        ("t.csv", "text\nx\n", ("--id", "number"), 2),
        ("t.csv", "text\nx\n", ("--encoding", "latin-99"), 2),
        ("t.csv", "text\nx\n", ("--delimiter", "two"), 2),
        ("t.jsonl", '{"text": "x"}\n', ("--delimiter", "comma"), 2),
        ("t.csv", "text,label\nx,good\n", ("--layout", "rows"), 2),
        ("t.csv", "text,label\nx,good\n", ("--white", "0"), 2),
        ("t.csv", "text,label\nx,good\n", ("--read-limit", "0"), 2),
    ],
)
def test_errors_about_tables_name_what_can_be_typed(
    here: Path, name: str, content: str, arguments: tuple[str, ...], code: int
) -> None:
    (here / name).write_text(content)
    said = run(*INIT, name, *CLASSES, *arguments, code=code)
    assert "data." not in said
    options = set(re.findall(r"--[a-z-]+", said))
    assert options
    assert options <= options_of_init()


def test_errors_about_bytes_and_folders_name_what_can_be_typed(here: Path) -> None:
    (here / "t.csv").write_bytes("text\nschön\n".encode("cp1252"))
    said = run(*INIT, "t.csv", *CLASSES, code=3)
    assert "`--encoding`" in said
    assert "data.encoding" not in said
    run(*INIT, "t.csv", *CLASSES, "--encoding", "cp1252")
    samples = samples_of(read_project(here / "p")[0])
    assert isinstance(samples, TableRows)
    assert samples.cells == ({"text": "schön"},)
    for folder in ("good_train", "good_test", "bad"):
        (here / "d" / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(here / "d" / folder / "a.png")
    said = run("init", "q", "--data", "d", "--classes", "good_train,good_test,bad", code=3)
    assert "`--layout` to classes" in said
    classes = ("--classes", "good_train,good_test,bad")
    assert "3 labelled already" in run("init", "q", "--data", "d", *classes, "--layout", "classes")


def test_ids_and_delimiters_are_read_as_was_asked(here: Path) -> None:
    (here / "t.csv").write_text("key;a,b\nx;1,2\ny;3,4\n")
    run(*INIT, "t.csv", *CLASSES, "--delimiter", "semicolon", "--id", "key")
    settings, _ = read_project(here / "p")
    assert settings.reading == ReadingOptions(id="key", delimiter="semicolon")
    samples = samples_of(settings)
    assert isinstance(samples, TableRows)
    assert samples.ids == ("x", "y")
    assert samples.cells == ({"a,b": "1,2"}, {"a,b": "3,4"})
    said = run("start", "t.csv", "-o", "p", *CLASSES, "--id", "a,b", code=2)
    assert "id key, not a,b" in said


def test_levels_of_16_bits_are_shown_and_read_with_their_white(here: Path) -> None:
    levels = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    (here / "d").mkdir()
    Image.fromarray(levels).save(here / "d" / "deep.png")
    Image.new("L", (16, 16), 90).save(here / "d" / "plain.png")
    run(*INIT, "d", *CLASSES, "--white", "4095")
    samples = samples_of(read_project(here / "p")[0])
    assert isinstance(samples, FolderImages)
    expected = np.rint(levels / 4095 * 255)
    shown = np.asarray(Image.open(io.BytesIO(samples.picture(0).data)).convert("L"))
    np.testing.assert_allclose(shown, expected, atol=1)
    np.testing.assert_allclose(samples.pixels(0, 16)[0], expected, atol=1)
    assert samples.picture(1).data == (here / "d" / "plain.png").read_bytes()


def test_the_white_of_16_bits_is_decided_as_a_run_does(here: Path) -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    (here / "d").mkdir()
    Image.fromarray(levels).save(here / "d" / "deep.png")
    assert "65,535 as white" in run(*INIT, "d", *CLASSES)
    settings = read_project(here / "p")[0]
    assert settings.reading.white == 65535
    samples = samples_of(settings)
    assert isinstance(samples, FolderImages)
    np.testing.assert_allclose(samples.pixels(0, 16)[0], levels / 257, atol=1)
    Image.fromarray(levels // 16).save(here / "d" / "deep.png")
    said = run("init", "q", "--data", "d", *CLASSES, code=3)
    assert "`--white` to the level that is to be white in all of them, such as 4095" in said
    assert not (here / "q").exists()


def test_words_for_no_label_are_told_and_may_be_classes(here: Path) -> None:
    (here / "t.csv").write_text("text,label\nx,good\ny,NA\nz,bad\n")
    said = run(*INIT, "t.csv", *CLASSES)
    assert "1 of 3 rows are unlabelled: their label is 'NA' (1)" in said
    assert "name it among the `--classes`" in said
    assert "3 labelled already" in run("init", "q", "--data", "t.csv", "--classes", "good,bad,NA")


def test_projects_without_these_options_are_read_and_written_as_before(tmp_path: Path) -> None:
    old = {"data": "d", "classes": ["a", "b"], "kind": "class", "strategy": "margin",
           "control": 0.2, "target": None, "twice": 0.0, "seed": 0}  # fmt: skip
    settings = ProjectSettings.from_record(old)
    assert settings.record() == old
    other = ProjectSettings("d", ("a", "b"), reading=ReadingOptions(white=4095))
    with Project.create(tmp_path / "p", other) as project:
        assert project.settings == other
    assert read_project(tmp_path / "p")[0] == other
    json.dumps(other.record())


def test_paths_that_look_like_options_stay_as_they_are() -> None:
    text = "Expected ids in data.csv but `data.id` is there twice; try data.classes=[cat,dog]."
    assert as_arguments(text) == (
        "Expected ids in data.csv but `id` is there twice; try classes=[cat,dog]."
    )
    assert as_command_options(text) == (
        "Expected ids in data.csv but `--id` is there twice; try --classes cat,dog."
    )
