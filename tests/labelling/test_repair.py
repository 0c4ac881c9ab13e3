"""A project whose log is damaged: `verify` says so, and `repair` saves the answers before it."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upslope.cli.app import app
from upslope.labelling.project import FORMAT, Project, read_project
from upslope.labelling.settings import ProjectSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = ProjectSettings("photos", ("cat", "dog", "bird"))
    with Project.create(tmp_path / "p", settings) as project:
        for i in range(30):
            project.answer(f"s{i}", ("cat", "dog", "bird")[i % 3], author="me")
    return tmp_path / "p"


def labels_of(folder: Path) -> dict[str, object]:
    return dict(read_project(folder)[1].labels(control=False))


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join((result.output + (result.stderr or "")).split())


def test_a_sound_project_is_told_to_be_so(folder: Path) -> None:
    code, text = run("verify", folder)
    assert code == 0
    assert "sound, 30 events" in text


def test_a_changed_answer_is_found_and_those_before_it_are_saved(folder: Path) -> None:
    whole, saved = labels_of(folder), folder.parent / "saved"
    with sqlite3.connect(folder / FORMAT.file) as db:
        db.execute("UPDATE events SET body = replace(body, 's20', 's21') WHERE number = 21")
    db.close()
    code, text = run("verify", folder)
    assert code == 6
    assert "event 21 is not what was recorded" in text
    code, text = run("repair", folder, "--out", saved)
    assert code == 0, text
    assert "20 events" in text
    assert "lost: the ledger from event 21 on" in text
    assert labels_of(saved) == {f"s{i}": whole[f"s{i}"] for i in range(20)}
    assert stat.S_IMODE((saved / FORMAT.file).stat().st_mode) == 0o600
    with Project(saved) as project:  # it goes on
        project.answer("s20", "cat", author="me")
        assert project.token
    assert run("verify", saved)[0] == 0
    code, text = run("repair", folder, "--out", saved)
    assert code != 0
    assert "new folder" in text


def test_what_does_not_follow_is_left_out_though_its_bytes_are_sound(folder: Path) -> None:
    """A log without a chain, as earlier versions wrote it, whose last event corrects no answer."""
    with sqlite3.connect(folder / FORMAT.file) as db:
        db.execute("DELETE FROM meta WHERE key = 'chain'")
        db.execute("UPDATE events SET kind = 'corrected' WHERE number IN (26, 29)")
    db.close()
    code, text = run("repair", folder, "--out", folder.parent / "saved")
    assert code == 0, text
    assert "lost: the ledger from event 26 on: out of turn" in text
    assert list(labels_of(folder.parent / "saved")) == [f"s{i}" for i in range(25)]


@pytest.mark.parametrize("content", ["no byte", "no table"])
def test_an_empty_log_is_damage_and_nothing_can_be_saved_of_it(folder: Path, content: str) -> None:
    """A project is made in one step: no kill leaves an empty one, as it does with a run."""
    log = folder / FORMAT.file
    log.write_bytes(b"")
    if content == "no table":
        with sqlite3.connect(log) as db:
            db.execute("PRAGMA user_version = 1")
        db.close()
    code, text = run("verify", folder)
    assert code == 6
    assert "it is empty" in text
    assert "same command again" not in text
    code, text = run("repair", folder, "--out", folder.parent / "saved")
    assert code == 6
    assert "it is empty" in text
    assert not (folder.parent / "saved").exists()
