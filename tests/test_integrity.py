"""Damage to the files of a run is noticed, and what can be made again is."""

from __future__ import annotations

import errno
import random
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from upslope import datasets, models, strategies, tasks
from upslope.cli import app
from upslope.errors import RunError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.experiment.model_store import ModelStore
from upslope.experiment.verify import repair_run, verify_run
from upslope.ledger import Event, Ledger, read_run
from upslope.ledger.lock import RunLock
from upslope.ledger.store import has_begun
from upslope.training import TrainingSettings

LEDGERS = Path(__file__).with_name("ledgers")
INFO = {"strategy": "margin", "seed": 0, "primary": "accuracy", "cycles": 2}


def begin(path: Path) -> Ledger:
    return Ledger(path, config={"lr": 0.1}, environment={}, info=INFO)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    book = begin(path)
    book.record(Event("asked", 0, {"ids": [f"sample-{i}" for i in range(50)]}))
    for i in range(50):
        book.record(Event("labelled", 0, {"labels": {f"sample-{i}": i % 3}}))
    book.close()
    return path


def test_labels_are_in_the_file_itself_after_each_record(tmp_path: Path) -> None:
    book = begin(tmp_path / "run")
    book.record(Event("asked", 0, {"ids": ["a"]}), Event("labelled", 0, {"labels": {"a": 1}}))
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "run" / "ledger.sqlite", tmp_path / "copy")
    book.close()
    assert read_run(tmp_path / "copy").labels == {"a": 1}


def test_what_a_kill_left_half_written_is_taken_back_by_readers(
    folder: Path, tmp_path: Path
) -> None:
    before, copy = read_run(folder), tmp_path / "copy"
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")  # pages reach the file before the transaction's end
        db.execute("BEGIN")
        for _ in range(100):
            db.execute("INSERT INTO events SELECT NULL, time, cycle, kind, body, chain FROM events")
            if (folder / "ledger.sqlite").stat().st_size > 500_000:
                break
        shutil.copytree(folder, copy)
        db.execute("ROLLBACK")
    assert (copy / "ledger.sqlite-journal").stat().st_size > 0
    assert read_run(copy) == replace(before, path=copy)
    assert not (copy / "ledger.sqlite-journal").exists()


def test_no_flipped_bit_changes_what_is_read(folder: Path) -> None:
    file = folder / "ledger.sqlite"
    whole, before = file.read_bytes(), read_run(folder)
    rng, noticed = random.Random(0), 0
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            run = read_run(folder)
        except RunError:
            noticed += 1
            continue
        assert (run.labels, run.pending, run.config, run.info) == (
            before.labels, before.pending, before.config, before.info,
        )  # fmt: skip
    assert noticed > 50


def test_changed_removed_and_swapped_events_are_noticed(folder: Path) -> None:
    whole = (folder / "ledger.sqlite").read_bytes()
    for change in (
        """UPDATE events SET body = '{"labels": {"sample-7": 2}}' WHERE number = 9""",
        "UPDATE events SET time = time + 1 WHERE number = 3",
        "DELETE FROM events WHERE number = 20",
        "UPDATE meta SET value = replace(value, '0.1', '0.2') WHERE key = 'config'",
        "DELETE FROM meta WHERE key = 'chain'",
        "UPDATE events SET chain = NULL",
    ):
        (folder / "ledger.sqlite").write_bytes(whole)
        with sqlite3.connect(folder / "ledger.sqlite") as db:
            db.execute(change)
        db.close()
        with pytest.raises(RunError, match="damaged"):
            read_run(folder)


def test_repair_saves_what_comes_before_the_damage(folder: Path, tmp_path: Path) -> None:
    db = sqlite3.connect(folder / "ledger.sqlite")
    db.execute("""UPDATE events SET body = '{"labels": {"sample-29": 0}}' WHERE number = 31""")
    db.commit()
    db.close()
    assert "event 31 is not what was recorded" in verify_run(folder).problems[0]
    result = repair_run(folder, tmp_path / "saved")
    assert result.events == 30
    assert "event 31" in result.lost[0]
    assert read_run(tmp_path / "saved").labels == {f"sample-{i}": i % 3 for i in range(29)}
    assert verify_run(tmp_path / "saved").problems == ()
    begin(tmp_path / "saved").close()
    with pytest.raises(RunError, match="new folder"):
        repair_run(folder, tmp_path / "saved")


def test_repair_saves_what_comes_before_bytes_in_place_of_text(
    folder: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        db.execute("UPDATE events SET body = CAST(body AS BLOB) WHERE number = 31")
    assert "not JSON serializable" in verify_run(folder).problems[0]
    result = repair_run(folder, tmp_path / "saved")
    assert (result.events, "event 31" in result.lost[0]) == (30, True)


def test_a_repair_that_fails_leaves_nothing_and_can_be_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("upslope.ledger.salvage.write_ledger", full_disk)
        with pytest.raises(RunError, match="it is full"):
            repair_run(folder, tmp_path / "saved")
    assert not [path for path in tmp_path.iterdir() if "saved" in path.name]
    assert repair_run(folder, tmp_path / "saved").events == 51


def test_a_ledger_that_names_files_elsewhere_is_no_way_to_write_there(tmp_path: Path) -> None:
    content = b"somebody else's"
    (tmp_path / "theirs" / "run").mkdir(parents=True)
    (tmp_path / "theirs" / "profile").write_bytes(content)
    trained = {
        "file": "../profile", "sha256": sha256(content).hexdigest(), "n_labelled": 1, "loss": 0.0,
        "seconds": 0.0, "reused": False,
    }  # fmt: skip
    book = begin(tmp_path / "theirs" / "run")
    book.record(
        Event("asked", 0, {"ids": ["a"]}),
        Event("labelled", 0, {"labels": {"a": 1}}),
        Event("trained", 0, trained),
    )
    book.close()
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="in its own folder"):
        repair_run(tmp_path / "theirs" / "run", tmp_path / "mine" / "saved")
    assert not list((tmp_path / "mine").iterdir())
    assert "in its own folder" in verify_run(tmp_path / "theirs" / "run").problems[0]


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_old_ledgers_have_no_chain_and_get_one(tmp_path: Path) -> None:
    shutil.copy(LEDGERS / "finished-version-1.sqlite", tmp_path / "ledger.sqlite")
    assert any("no chain" in note for note in verify_run(tmp_path).notes)


def test_a_second_writer_without_locks_is_refused(tmp_path: Path) -> None:
    book = begin(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("INSERT INTO events VALUES (1, 0, 0, 'asked', '{\"ids\": [\"x\"]}', '')")
    db.close()
    with pytest.raises(RunError, match="another process has recorded"):
        book.record(Event("asked", 0, {"ids": ["a"]}))
    book.close()


@pytest.mark.parametrize("left", ["models/cycle-0.safetensors", "training.safetensors"])
@pytest.mark.parametrize("ledger", ["missing", "empty"])
def test_a_lost_ledger_is_not_begun_anew(tmp_path: Path, left: str, ledger: str) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_bytes(b"model")
    if ledger == "empty":
        (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(RunError, match=f"it is {ledger}"):
        begin(tmp_path)


def test_a_ledger_without_a_table_has_not_begun(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:  # as a kill at once leaves it
        db.execute("PRAGMA journal_mode = WAL")
    assert (tmp_path / "ledger.sqlite").stat().st_size > 0
    assert not has_begun(tmp_path)
    with pytest.raises(RunError, match="but there is nothing"):
        read_run(tmp_path)
    begin(tmp_path).close()
    assert has_begun(tmp_path)
    assert read_run(tmp_path).strategy == "margin"


def test_a_lock_that_cannot_be_written_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("upslope.ledger.lock.json.dump", full)
        with pytest.raises(RunError, match="full") as error:
            RunLock(tmp_path)
    RunLock(tmp_path).release()  # while the error, with its frames, is still held
    assert error.value.__cause__ is not None


def test_the_lock_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(victim)
    with pytest.raises(RunError, match="it is a link"):
        begin(tmp_path / "run")
    assert victim.read_text() == "precious"


def test_a_ledger_of_version_2_is_gone_on_with_and_sealed(tmp_path: Path) -> None:
    shutil.copy(LEDGERS / "asked-version-2.sqlite", tmp_path / "ledger.sqlite")
    assert read_run(tmp_path).labels == {"a": 1}
    book = begin(tmp_path)
    book.record(Event("labelled", 0, {"labels": {"b": 2}}))
    book.close()
    assert read_run(tmp_path).labels == {"a": 1, "b": 2}
    assert verify_run(tmp_path).notes == (
        "no chain before event 3: an earlier version of Upslope wrote those",
    )
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:  # an event without a link of its own
        db.execute("UPDATE events SET body = replace(body, '1', '0') WHERE number = 2")
    db.close()
    with pytest.raises(RunError, match="up to number 2"):
        read_run(tmp_path)


def test_a_model_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error", str(path))

    store = ModelStore(
        tmp_path, torch.nn.Identity, 0, TrainingSettings(), torch.device("cpu"), None, False
    )
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match=r"Input/output error: .*training\.safetensors"):
        store.tidy(1)


@pytest.mark.filterwarnings("ignore:.*is missing. the model of cycle 1 is trained again")
def test_a_repaired_run_is_gone_on_with_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page repaired into the folder that the command takes for a run that people label."""
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text("utf-8")
    (repair,) = re.findall(r"^upslope (repair runs/digits/.*)$", page, re.MULTILINE)
    (out,) = re.findall(r"goes on there, here with `--out (\S+)`", page)
    monkeypatch.chdir(tmp_path)
    settings = {
        "data.limit": 40, "data.test_limit": 20, "model.name": "mlp", "training.epochs": 1,
        "experiment.initial": 10, "experiment.budget": 5, "experiment.cycles": 2,
    }  # fmt: skip
    options = [word for key, value in settings.items() for word in ("-s", f"{key}={value}")]
    run = ["run", "--strategy", "margin", "--seeds", "[0]", *options, "--out"]

    def upslope(*words: str) -> None:
        result = CliRunner().invoke(app, words, prog_name="upslope")
        assert result.exit_code == 0, result.output

    upslope(*run, "runs/digits")
    with closing(sqlite3.connect("runs/digits/margin/seed-0/ledger.sqlite")) as db:
        db.execute("UPDATE events SET body = '{}' WHERE number = 5")
        db.commit()
    upslope(*repair.split())
    assert not read_run(f"{out}/margin/seed-0").finished
    upslope(*run, out)
    assert read_run(f"{out}/margin/seed-0").finished
    assert not (Path(out) / "ledger.sqlite").exists()


def test_a_ledger_without_anything_recorded_is_empty_and_not_damaged(tmp_path: Path) -> None:
    """As a full disk leaves it: there is nothing to lose, and the command begins anew."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.sqlite").touch()
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    text = " ".join(result.output.split())
    assert result.exit_code == 0, text
    assert "empty, 0 events" in text
    assert "Run the same command again" in text
    assert "damaged" not in text
    result = CliRunner().invoke(app, ["repair", str(tmp_path / "run"), "-o", str(tmp_path / "s")])
    assert result.exit_code == RunError.exit_code
    assert "Run the same command again" in " ".join(result.output.split())
    assert not (tmp_path / "s").exists()


def test_an_empty_ledger_beside_models_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cycle-0.safetensors").touch()
    (tmp_path / "ledger.sqlite").touch()
    (problem,) = verify_run(tmp_path).problems
    assert "restore the ledger" in problem
    with pytest.raises(RunError, match="restore the ledger"):
        repair_run(tmp_path, tmp_path / "saved")


@pytest.mark.parametrize("left", ["models/cycle-0.safetensors", "training.safetensors"])
def test_a_run_whose_ledger_is_gone_is_told_beside_sound_ones(
    folder: Path, tmp_path: Path, left: str
) -> None:
    (tmp_path / "seed-1" / left).parent.mkdir(parents=True)
    (tmp_path / "seed-1" / left).touch()
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    text = " ".join(result.output.split())
    assert result.exit_code == RunError.exit_code, text
    assert f"{folder}: sound" in text
    assert f"{tmp_path / 'seed-1'}: damaged" in text
    assert "1 of 2 folders is damaged" in text
    for command in ("status", "report"):  # not the others alone, as if there were no more
        result = CliRunner().invoke(app, [command, str(tmp_path)])
        assert result.exit_code == RunError.exit_code
        assert "restore the ledger" in " ".join(result.output.split())


@pytest.mark.parametrize("fault", ["damaged", "missing"])
def test_a_damaged_companion_is_told_after_the_selection_too(tmp_path: Path, fault: str) -> None:
    """The module that predicts losses chooses once more where a sample is passed."""
    loaded = datasets.load("digits", limit=80, test_limit=20)
    mean, std = datasets.statistics(loaded.pool)
    shape = loaded.pool.input_shape

    def opened(name: str) -> Experiment:
        return Experiment(
            tmp_path / name, splits=loaded, strategy=strategies.build("ll4al"), device="cpu",
            task=tasks.build("classification", num_classes=10, mean=mean, std=std),
            model=partial(models.build, "cnn-small", num_classes=10, input_shape=shape, width=4),
            settings=ExperimentSettings(initial=10, budget=5, cycles=2),
            training=TrainingSettings(epochs=2), progress=False,
        )  # fmt: skip

    asked = []
    for name in ("sound", fault):
        with opened(name) as run:
            run.tell(dict.fromkeys(run.ask()))
            run.skip(run.ask()[:2])
        file = tmp_path / name / "models" / "cycle-0.companion"
        if name == "damaged":
            file.write_bytes(file.read_bytes()[:-4] + bytes(4))
        elif name == "missing":
            file.unlink()
        with opened(name) as run:
            if name == "sound":
                asked.append(run.ask())
                continue
            with pytest.warns(UserWarning, match=rf"0\.companion is {fault}: the model of cycle 1"):
                asked.append(run.ask())
    assert asked[0] == asked[1]
