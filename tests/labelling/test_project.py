"""The store of answers: what is recorded stays, alone, private, and adds up."""

from __future__ import annotations

import csv
import os
import random
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet
from sklearn.metrics import cohen_kappa_score

from upslope.errors import ConfigError, DataError, RunError
from upslope.labelling.events import fold
from upslope.labelling.exports import export_table
from upslope.labelling.project import FORMAT, Project, read_project
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import (
    CANNOT_TELL,
    CONTROL,
    SKIP,
    Pass,
    answers_that_count,
    slice_of,
)
from upslope.labelling.status import lines, status
from upslope.ledger import Event

SETTINGS = ProjectSettings("photos", ("cat", "dog", "bird"))
AGREEING = [
    ("cat", "cat"), ("dog", "dog"), ("dog", "cat"),
    ("bird", "bird"), ("cat", "bird"), ("cat", "cat"),
]  # fmt: skip
SETS = ProjectSettings("photos", ("cat", "dog", "bird"), kind="labels")


def labels_of(folder: Path) -> dict[str, object]:
    return dict(read_project(folder)[1].labels(control=False))


def test_answers_corrections_and_undo_add_up(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETTINGS) as project:
        project.answer("a", "dog", author="me", seconds=1.5, note="a tail")
        project.skip("b", CANNOT_TELL, author="me")
        project.answer("c", "cat", author="me")
        project.answer("c", "bird", author="me")
        assert labels_of(tmp_path / "p") == {"a": 1, "c": 2}  # read while it is open
        undone = project.undo("me")
        assert undone is not None
        assert (undone.id, undone.label) == ("c", 2)
        undone = project.undo("me")
        assert undone is not None
        assert (undone.id, undone.reason) == ("b", CANNOT_TELL)
        project.skip("a", SKIP, author="me")  # a label becomes a pass
    settings, state = read_project(tmp_path / "p")
    assert settings == SETTINGS
    assert {i: a["me"].reason for i, a in state.answers.items()} == {"a": SKIP}
    with Project(tmp_path / "p") as project:
        assert project.undo("me") is not None
        assert project.undo("me") is None
        assert project.undo("somebody") is None


def test_an_answer_is_on_the_disk_when_the_call_returns(tmp_path: Path) -> None:
    code = (
        "import os, sys; from upslope.labelling.project import Project\n"
        "project = Project(sys.argv[1])\n"
        "for i in range(20): project.answer(f'x{i}', 'dog', author='me')\n"
        "os.kill(os.getpid(), 9)"
    )
    Project.create(tmp_path / "p", SETTINGS).close()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "p")], check=False)
    assert done.returncode == -9
    assert labels_of(tmp_path / "p") == {f"x{i}": 1 for i in range(20)}
    with Project(tmp_path / "p") as project:
        project.answer("y", "cat", author="me")
    assert len(labels_of(tmp_path / "p")) == 21


def test_the_history_keeps_what_was_corrected(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETTINGS) as project:
        project.answer("a", "dog", author="me", seconds=2.0, slice_=CONTROL)
        project.answer("a", "cat", author="me", seconds=1.0, slice_="other")
        project.answer("a", "cat", author="me")  # the same again changes nothing
    db = sqlite3.connect(tmp_path / "p" / FORMAT.file)
    kinds = [kind for (kind,) in db.execute("SELECT kind FROM events ORDER BY number")]
    view = db.execute("SELECT id, label FROM labels").fetchall()
    db.close()
    assert kinds == ["labelled", "corrected"]
    assert view == [("a", 0)]
    state = read_project(tmp_path / "p")[1]
    assert state.labels(control=True) == {"a": 0}  # a correction keeps the slice
    assert state.labels(control=False) == {}


def test_label_sets(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETS) as project:
        project.answer("a", ["bird", "cat"], author="me")
        project.answer("b", [], author="me")
        with pytest.raises(DataError, match="list of the labels present"):
            project.answer("c", "cat", author="me")
    assert labels_of(tmp_path / "p") == {"a": [1, 0, 1], "b": [0, 0, 0]}


def test_several_people_are_merged_by_majority(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETTINGS) as project:
        for author, name in (("ann", "dog"), ("bob", "cat"), ("cem", "cat")):
            project.answer("a", name, author=author)
        project.answer("b", "bird", author="bob")
        project.answer("b", "dog", author="ann")  # a tie: what was said first
        project.skip("c", SKIP, author="ann")
        project.answer("c", "dog", author="bob")
        assert project.state.labels(control=False) == {"a": 0, "b": 2, "c": 1}
        project.undo("cem")
        assert project.state.labels(control=False)["a"] == 1


def test_status_tells_how_far_people_agree(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETTINGS) as project:
        project.take_in({"a": "cat"}, "old.csv")
        for i, (one, other) in enumerate(AGREEING):
            project.answer(f"s{i}", one, author="ann", seconds=2.0)
            project.answer(f"s{i}", other, author="bob", seconds=4.0)
        project.answer("alone", "cat", author="ann", seconds=9.0)
        project.skip("passed", SKIP, author="bob", seconds=4.0)
    standing = status(tmp_path / "p")
    kappa = cohen_kappa_score(*zip(*AGREEING, strict=True))
    assert standing["agreement"] == {
        "samples": 6, "agreed": 4, "kappa": pytest.approx(kappa), "method": "Cohen",
    }  # fmt: skip
    assert standing["people"]["ann"] == {
        "answers": 7, "timed_answers": 7, "median_seconds": 2.0,
    }  # fmt: skip
    assert standing["passed"] == {SKIP: 1}
    assert (standing["labelled"], standing["imported"]) == (8, 1)
    words = dict(lines(standing))
    assert "4 of 6 samples" in words["agreement"]
    assert f"Cohen's kappa {kappa:.2f}" in words["agreement"]
    with Project(tmp_path / "p") as project:
        project.answer("alone", "cat", author="cem")
    assert status(tmp_path / "p")["agreement"]["method"] == "Fleiss"


def test_answers_without_a_time_are_no_answers_in_no_time(tmp_path: Path) -> None:
    """Neither those of a sheet, nor those that earlier versions recorded as of 0 seconds."""
    with Project.create(tmp_path / "p", SETTINGS) as project:
        project.take_in({"z": "dog"}, "old.csv")
        project.answer("a", "dog", author="me")
        project.skip("b", SKIP, author="me", seconds=0.0)
    standing = status(tmp_path / "p")
    assert standing["people"]["me"] == {"answers": 2, "timed_answers": 0, "median_seconds": None}
    assert dict(lines(standing))["person"] == "me: 2 answers, no time known"
    with Project(tmp_path / "p") as project:
        project.answer("c", "dog", author="me", seconds=3.0)
        project.answer("d", "dog", author="me", seconds=5.0)
        old = {"labels": {"e": 1}, "author": "me", "seconds": 0.0}
        assert fold([Event("labelled", 0, old)]).answers["e"]["me"].seconds is None
    standing = status(tmp_path / "p")
    assert standing["people"]["me"]["median_seconds"] == 4.0
    words = dict(lines(standing))["person"]
    assert words == "me: 4 answers, median 4.0 s of the 2 whose time is known"
    export_table(tmp_path / "p", tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open() as file:
        rows = {row["id"]: row["seconds"] for row in csv.DictReader(file)}
    assert rows == {"z": "", "a": "", "b": "", "c": "3.0", "d": "5.0"}
    export_table(tmp_path / "p", tmp_path / "labels.parquet")
    times = parquet.read_table(tmp_path / "labels.parquet").column("seconds").to_pylist()
    assert times == [None, None, None, 3.0, 5.0]


def test_the_tally_is_that_of_the_answers(tmp_path: Path) -> None:
    rng = random.Random(0)
    with Project.create(tmp_path / "p", SETTINGS) as project:
        for _ in range(250):
            id_, author = f"s{rng.randrange(12)}", rng.choice(["ann", "bob", "cem"])
            act = rng.randrange(5)
            if act == 4:
                source = rng.choice(["one.csv", "two.csv"])
                project.take_in({id_: rng.choice([*SETTINGS.classes, Pass(SKIP)])}, source)
            elif act == 0:
                project.undo(author)
            elif act == 1:
                project.skip(id_, SKIP, author=author, slice_=rng.choice(["x", CONTROL]))
            else:
                name = rng.choice(SETTINGS.classes)
                project.answer(id_, name, author=author, slice_=rng.choice(["x", CONTROL]))
            state = project.state
            merged = {**state.labels(control=True), **state.labels(control=False)}
            assert state.tally.labelled == len(merged)
            assert state.tally.passed == len(state.answers) - len(merged)
            assert +state.tally.labels == Counter(merged.values())
            counted = [answers_that_count(by_author) for by_author in state.answers.values()]
            assert state.tally.imported == sum(a[0].is_imported for a in counted if a)
            assert +state.tally.slices == Counter(map(slice_of, state.answers.values()))
            for name in ("ann", "bob", "cem"):
                own = [by[name] for by in state.answers.values() if name in by]
                expected = sorted(own, key=lambda answer: -answer.order)
                assert state.newest_of(name, 5) == expected[:5]
    assert read_project(tmp_path / "p")[1] == state


def test_folder_and_files_are_private(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETTINGS) as project:
        project.answer("a", "dog", author="me")
        assert stat.S_IMODE(project.folder.stat().st_mode) == 0o700
        files = [file for file in project.folder.iterdir() if file.is_file()]
        assert {file.name for file in files} >= {"labels.sqlite", "run.lock", "token"}
        for file in files:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert len(project.token) >= 32


def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    code = "import sys; from upslope.labelling.project import Project; Project(sys.argv[1])"
    with Project.create(tmp_path / "p", SETTINGS):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "p")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert f"process {os.getpid()}" in done.stderr
    assert "Expected to be alone" in done.stderr


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="labelling project"):
        Project(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RunError, match="holds other files"):
        Project.create(tmp_path, SETTINGS)
    with Project.create(tmp_path / "p", SETTINGS) as project:
        with pytest.raises(DataError, match="'fox'"):
            project.answer("a", "fox", author="me")
        with pytest.raises(DataError, match="skip, cannot tell"):
            project.skip("a", "tired", author="me")
        for call in (project.answer, project.skip):
            with pytest.raises(DataError, match=r"'import: old\.csv'\. Take another name"):
                call("a", "skip" if call == project.skip else "cat", author="import: old.csv")
        assert project.state.events == 0
    with pytest.raises(RunError, match="there is one"):
        Project.create(tmp_path / "p", SETTINGS)
    for options, what in (
        ({"control": 1.0}, "--control"),
        ({"twice": -0.1}, "--twice"),
        ({"kind": "circles"}, "--kind"),
        ({"classes": ("cat",)}, "two or more"),
        ({"classes": ("cat", "cat")}, "distinct"),
    ):
        with pytest.raises(ConfigError, match=what):
            ProjectSettings(**{"data": "x", "classes": ("cat", "dog"), **options})  # type: ignore[arg-type]


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETTINGS) as project:
        project.answer("a", "dog", author="me", note="plain")
    file = tmp_path / "p" / FORMAT.file
    file.write_bytes(file.read_bytes().replace(b"plain", b"plane"))
    with pytest.raises(RunError, match="not what was recorded"):
        read_project(tmp_path / "p")


@pytest.mark.parametrize(
    "events",
    [
        [Event("corrected", 0, {"labels": {"a": 0}, "author": "me"})],
        [Event("labelled", 0, {"labels": {"a": 0}, "author": "me"})] * 2,
        [Event("taken_back", 0, {"labels": {"a": 0}, "passed": {}, "author": "me"})],
        [Event("asked", 0, {"ids": []})],
    ],
)
def test_events_that_cannot_follow_are_refused(events: list[Event]) -> None:
    with pytest.raises(ValueError):
        fold(events)


def test_labels_that_exist_come_in_once(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p", SETTINGS) as project:
        assert project.take_in({"a": "cat", "b": "dog"}, "old.csv") == (2, 0)
        assert project.take_in({"a": "cat", "b": "bird"}, "old.csv") == (0, 1)
        with pytest.raises(DataError, match="'fox'"):
            project.take_in({"c": "cat", "d": "fox"}, "old.csv")
        assert project.state.labels(control=False) == {"a": 0, "b": 2}
        assert project.undo("me") is None
        assert project.take_in({"a": Pass(SKIP), "c": Pass(CANNOT_TELL)}, "old.csv") == (0, 1)
        assert project.take_in({"a": Pass(SKIP), "c": Pass(SKIP)}, "old.csv") == (0, 1)
        assert project.take_in({"a": "dog"}, "old.csv") == (0, 1)
        assert project.state.labels(control=False) == {"a": 1, "b": 2}
        assert (project.state.tally.labelled, project.state.tally.passed) == (2, 1)
        state = project.state
    assert read_project(tmp_path / "p")[1] == state


def test_a_project_that_could_not_be_begun_is_begun_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(RunError, match="it is full"):
            Project.create(tmp_path / "p", SETTINGS)
    assert [*tmp_path.iterdir()] == []
    with Project.create(tmp_path / "p", SETTINGS) as project:
        assert len(project.token) > 20
    assert stat.S_IMODE((tmp_path / "p").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "p").iterdir()} == {0o600}


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_that_is_gone_or_empty_is_made_anew(tmp_path: Path, content: str | None) -> None:
    """An empty one would let in everybody who shows none."""
    with Project.create(tmp_path / "p", ProjectSettings("digits", ("a", "b"))) as project:
        before = project.token
        path = tmp_path / "p" / "token"
        path.unlink()
        if content is not None:
            path.write_text(content)
        assert len(project.token) == len(before) > 30
        assert project.token != before
        assert path.stat().st_mode & 0o777 == 0o600
