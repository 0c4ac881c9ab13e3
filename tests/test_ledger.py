"""The ledger: a fold over events, and files that are not to be trusted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from upslope.errors import RunError
from upslope.ledger import Event, Ledger, State, fold, read_run

INFO = {"strategy": "margin", "seed": 0, "primary": "accuracy", "cycles": 2}
TRAINED = {
    "file": "models/cycle-0.safetensors",
    "sha256": "0",
    "n_labelled": 2,
    "loss": 0.5,
    "seconds": 1.0,
    "reused": False,
}
EVENTS = [
    Event("asked", 0, {"ids": ["a", "b"]}),
    Event("labelled", 0, {"labels": {"b": 1}}),
    Event("labelled", 0, {"labels": {"a": 0}}),
    Event("trained", 0, TRAINED),
    Event("evaluated", 0, {"test": {"accuracy": 0.5}, "train": {"accuracy": 1.0}}),
    Event("skipped", 1, {"ids": ["x"]}),
    Event("asked", 1, {"ids": ["d", "c"], "scores": [2.0, 1.0], "seconds": 3.0, "candidates": 9}),
    Event("labelled", 1, {"labels": {"d": None}}),
]


Opener = Callable[..., Ledger]


@pytest.fixture
def ledger() -> Iterator[Opener]:
    opened: list[Ledger] = []

    def open_one(path: Path, config: dict[str, Any] | None = None) -> Ledger:
        opened.append(Ledger(path, config=config or {"lr": 0.1}, environment={}, info=INFO))
        return opened[-1]

    yield open_one
    for book in opened:
        book.close()


def test_state_is_the_fold_of_the_events() -> None:
    state = fold(EVENTS)
    assert state.cycle == 1
    assert state.initial == ("a", "b")
    assert state.pending == ("c",)
    assert state.labels == {"b": 1, "a": 0, "d": None}
    assert state.trained is None
    assert state.skipped == {"x"}
    (record,) = state.cycles
    assert (record.asked, record.scores, record.select_seconds) == (("d", "c"), (2.0, 1.0), 3.0)
    assert (record.metrics, record.train_metrics) == ({"accuracy": 0.5}, {"accuracy": 1.0})
    assert record.skipped == ("x",)


PEOPLE = [
    Event("pool", 0, {"added": 0, "removed": 0, "config": {}, "before": {}, "ids": ""}),
    Event("asked", 0, {"ids": ["a", "b", "c"]}),
    Event("passed", 0, {"ids": {"b": "torn", "c": ""}}),
    Event("taken_back", 0, {"labels": {}, "passed": {"c": ""}}),
    Event("asked_instead", 0, {"ids": ["d"], "instead_of": ["b"], "scores": None, "seconds": 0.1}),
    Event("labelled", 0, {"labels": {"a": 0, "c": [0, 1], "d": 1}}),
    Event("corrected", 0, {"labels": {"a": 1}, "before": {"a": 0}}),
    Event("taken_back", 0, {"labels": {"d": 1}, "passed": {"b": "torn"}}),
    Event("extended", 1, {"config": {"experiment.cycles": 5}, "before": {"experiment.cycles": 2}}),
]


def test_what_people_do_adds_up() -> None:
    state = fold(PEOPLE)
    assert state.labels == {"a": 1, "c": [0, 1]}
    assert state.pending == ("d",)
    assert (state.passed, state.owed) == ({}, ())
    assert state.initial == ("a", "b", "c", "d")
    assert state.config({"experiment": {"cycles": 2, "lr": 1}}) == {
        "experiment": {"cycles": 5, "lr": 1}
    }
    for cut in range(len(PEOPLE) + 1):
        assert fold(PEOPLE[cut:], fold(PEOPLE[:cut])) == state


@pytest.mark.parametrize(
    ("before", "event"),
    [
        (2, Event("trained", 0, TRAINED)),
        (3, Event("passed", 0, {"ids": {"b": ""}})),
        (3, Event("trained", 0, TRAINED)),
        (3, Event("corrected", 0, {"labels": {"a": 1}, "before": {}})),
        (4, Event("asked_instead", 0, {"ids": ["x"], "instead_of": ["c"], "seconds": 0.0})),
        (6, Event("taken_back", 0, {"labels": {"x": 1}, "passed": {}})),
        (6, Event("taken_back", 0, {"labels": {}, "passed": {"a": ""}})),
    ],
)
def test_what_people_cannot_do_is_refused(before: int, event: Event) -> None:
    with pytest.raises(ValueError):
        fold([event], fold(PEOPLE[:before]))


def test_the_fold_may_be_taken_in_any_pieces() -> None:
    for cut in range(len(EVENTS) + 1):
        assert fold(EVENTS[cut:], fold(EVENTS[:cut])) == fold(EVENTS)


@pytest.mark.parametrize(
    ("before", "event"),
    [
        (0, EVENTS[3]),
        (1, EVENTS[3]),
        (1, EVENTS[6]),
        (1, Event("labelled", 0, {"labels": {"zz": 1}})),
        (3, EVENTS[4]),
        (4, EVENTS[6]),
        (5, Event("asked", 2, {"ids": ["c"]})),
        (5, Event("guessed", 0, {})),
    ],
)
def test_events_out_of_turn_are_refused_and_not_recorded(
    ledger: Opener, tmp_path: Path, before: int, event: Event
) -> None:
    book = ledger(tmp_path)
    for e in EVENTS[:before]:
        book.record(e)
    with pytest.raises(ValueError):
        book.record(event)
    book.close()
    assert ledger(tmp_path).state == fold(EVENTS[:before])


def test_what_is_recorded_is_read_back(ledger: Opener, tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for event in EVENTS[:4]:
        book.record(event)
    while_open = read_run(tmp_path)
    book.record(*EVENTS[4:])
    book.close()
    run = read_run(tmp_path)
    assert while_open.labels == {"b": 1, "a": 0}
    assert run.pending == ("c",)
    assert run.curve() == ((2,), (0.5,))
    assert (run.strategy, run.seed, run.finished) == ("margin", 0, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.sqlite", "run.lock"]


def test_any_tool_reads_the_labels(ledger: Opener, tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.record(*EVENTS)
    book.close()
    db = sqlite3.connect(tmp_path / "ledger.sqlite")
    rows = db.execute("SELECT cycle, id, label FROM labels").fetchall()
    db.close()
    assert rows == [(0, "b", 1), (0, "a", 0), (1, "d", None)]


def test_another_configuration_is_refused_naming_the_keys(ledger: Opener, tmp_path: Path) -> None:
    ledger(tmp_path, {"training": {"lr": 0.1, "epochs": 3}, "old": 1}).close()
    with pytest.raises(RunError) as caught:
        ledger(tmp_path, {"training": {"lr": 0.2, "epochs": 3}})
    assert "training.lr: 0.1 there, 0.2 now" in str(caught.value)
    assert "old: 1 there, absent now" in str(caught.value)
    assert "epochs" not in str(caught.value)


def test_one_holder_a_directory(ledger: Opener, tmp_path: Path) -> None:
    book = ledger(tmp_path)
    with pytest.raises(RunError, match="Expected to be alone"):
        ledger(tmp_path)
    book.close()
    ledger(tmp_path).close()


def test_missing_foreign_and_damaged_files(ledger: Opener, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is none"):
        read_run(tmp_path)
    file = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(file)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()
    before = file.read_bytes()
    for attempt in (lambda: ledger(tmp_path), lambda: read_run(tmp_path)):
        with pytest.raises(RunError, match="another program's"):
            attempt()
    file.write_bytes(b"not a database at all" * 100)
    for attempt in (lambda: ledger(tmp_path), lambda: read_run(tmp_path)):
        with pytest.raises(RunError, match="damaged"):
            attempt()
    assert len(before) > 0


def test_torn_pages_are_noticed(ledger: Opener, tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.record(Event("asked", 0, {"ids": [f"sample-{i}" for i in range(5000)]}))
    book.close()
    file = tmp_path / "ledger.sqlite"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        read_run(tmp_path)


def test_a_full_disk_loses_nothing_recorded(ledger: Opener, tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.record(*EVENTS[:3])
    (pages,) = book._db.execute("PRAGMA page_count").fetchone()
    book._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RunError, match="room on the disk"):
        book.record(Event("trained", 0, {**TRAINED, "file": "x" * 100_000}))
    assert book.state == fold(EVENTS[:3])
    book.close()
    assert ledger(tmp_path).state == fold(EVENTS[:3])


def test_readers_tell_that_a_run_has_lost_its_ledger(tmp_path: Path) -> None:
    """They said that the same command goes on, which refuses to."""
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(RunError, match="Run the same command again"):
        read_run(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cycle-1.safetensors").touch()
    with pytest.raises(RunError, match=r"cycle-1.* is left of its run, but it is empty.*a copy"):
        read_run(tmp_path)


def test_an_empty_file_is_a_ledger_not_yet_begun(ledger: Opener, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    book = ledger(tmp_path)
    assert book.state == State()
    book.close()
