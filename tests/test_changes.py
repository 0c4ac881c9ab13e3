"""Runs that are extended, pools that grow, and ledgers written before."""

from __future__ import annotations

import shutil
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from small_tasks import MODEL, TASK, Points, opening, splits
from upslope import report, strategies
from upslope.comparison import compare
from upslope.errors import ConfigError, RunError, SelectionError
from upslope.experiment import ExperimentSettings
from upslope.experiment.changes import _decode, _encode, _hashes
from upslope.ledger import read_run
from upslope.ledger.status import lines, status
from upslope.training import TrainingSettings

LEDGERS = Path(__file__).parent / "ledgers"
SETTINGS = ExperimentSettings(initial=20, budget=10, cycles=3, score_batch=64)
TRAINING = TrainingSettings(epochs=2, batch_size=8)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with opening(tmp_path, settings=SETTINGS, training=TRAINING) as open_one:
        yield open_one


def figures(run: Any) -> list[Any]:
    return [(c.n_labelled, c.model_sha256, c.asked, c.metrics) for c in run.cycles]


class Part(Points):
    """The first so many of more points, so that a pool can grow and shrink."""

    def __init__(self, ids: list[int], total: int = 240) -> None:
        super().__init__(total)
        object.__setattr__(self, "chosen", ids)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"p{i:04d}" for i in self.chosen)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.chosen)  # type: ignore[attr-defined]

    def inputs(self, indices: Any) -> Any:
        return super()._all()[[self.chosen[i] for i in indices]]  # type: ignore[attr-defined]

    def targets(self, indices: Any) -> Any:
        return super().targets([self.chosen[i] for i in indices])  # type: ignore[attr-defined]


def part(ids: Any) -> Any:
    return replace(splits(), pool=Part(list(ids)))


def test_more_cycles_end_as_a_run_that_had_them_from_the_start(start: Any) -> None:
    whole = start("whole", settings=replace(SETTINGS, cycles=5)).run()
    for cycles in (2, 3, 5):
        run = start(settings=replace(SETTINGS, cycles=cycles))
        result = run.run()
        run.close()
    assert figures(result) == figures(whole)
    assert result.config == whole.config
    assert result.info["cycles"] == 5
    assert [str(c) for c in result.changes] == [
        "from cycle 3 on, experiment.cycles 2 -> 3",
        "from cycle 4 on, experiment.cycles 3 -> 5",
    ]
    assert all(change.comparable for change in result.changes)


def test_a_larger_budget_counts_from_here_on(start: Any) -> None:
    with start() as run:
        run.run()
    run = start(settings=replace(SETTINGS, cycles=5, budget=0.1))
    (change,) = run.changes
    assert not change.comparable
    assert "only with runs changed alike" in str(change)
    assert [c.n_labelled for c in run.run().cycles] == [20, 30, 40, 60, 80]


def test_what_cannot_be_extended_is_refused_and_not_recorded(start: Any) -> None:
    with start() as run:
        run.run()
    for settings, error, words in (
        (replace(SETTINGS, cycles=2), RunError, "experiment.cycles: 3 there, 2 now"),
        (replace(SETTINGS, budget=5), RunError, "experiment.budget: 10 there, 5 now"),
        (replace(SETTINGS, initial=30), RunError, "experiment.initial: 20 there, 30 now"),
        (replace(SETTINGS, cycles=4, candidates="all"), RunError, "experiment.candidates"),
        (
            replace(SETTINGS, cycles=20),
            SelectionError,
            "17 cycles of 10 more",
        ),
    ):
        with pytest.raises(error, match=words):
            start(settings=settings)
    with start() as run:
        assert run.finished
        assert run.changes == []


def test_an_extension_before_the_first_cycle_is_finished(start: Any) -> None:
    with start() as run:
        asked = run.ask()
    with start(settings=replace(SETTINGS, cycles=4)) as run:
        assert run.ask() == asked
        assert [c.n_labelled for c in run.run().cycles] == [20, 30, 40, 50]


def test_a_pool_grows_and_old_choices_stay(start: Any) -> None:
    with start(splits=part(range(200))) as run:
        asked = run.ask()
    with start(splits=part([*range(200), *range(210, 240)])) as run:
        (change,) = run.changes
        assert (change.added, change.removed) == (30, 0)
        assert run.ask() == asked
        result = run.run()
    assert [c.n_labelled for c in result.cycles] == [20, 30, 40]
    assert result.info["pool"] == 230
    assert result.config["samples"]["pool"] == 230
    db = sqlite3.connect(result.path / "ledger.sqlite")
    kinds = [row[0] for row in db.execute("SELECT kind FROM events")]
    db.close()
    assert kinds.count("pool") == 2
    with start(splits=part([*range(200), *range(210, 240)])) as run:
        assert run.changes == []  # told once


def test_new_samples_are_chosen_and_shares_are_of_the_first_pool(start: Any) -> None:
    settings = ExperimentSettings(initial=0.1, budget=0.1, cycles=3, candidates="all")
    with start(splits=part(range(100)), settings=settings) as run:
        asked = run.ask()
    assert len(asked) == 10
    with start(splits=part(range(240)), settings=settings) as run:
        result = run.run()
    assert [c.n_labelled for c in result.cycles] == [10, 20, 30]
    assert result.cycles[0].n_candidates == 230
    assert any(int(i[1:]) >= 100 for i in result.labels)


def test_another_test_set_is_refused_also_of_as_many_samples(start: Any) -> None:
    test = Part(list(range(30)))
    with start(splits=replace(splits(), test=test)) as run:
        run.ask()
    with start(splits=replace(splits(), test=Part(list(range(30))))) as run:
        assert run.changes == []
    for other in (range(1, 31), range(29)):
        with pytest.raises(RunError, match="30 test samples with which"):
            start(splits=replace(splits(), test=Part(list(other))))


def test_samples_may_go_unless_they_were_asked(start: Any) -> None:
    with start(splits=part(range(200))) as run:
        asked = {int(i[1:]) for i in run.ask()}
    unasked = next(i for i in range(200) if i not in asked)
    with start(splits=part(i for i in range(200) if i != unasked)) as run:
        (change,) = run.changes
        assert (change.added, change.removed) == (0, 1)
    gone = min(asked)
    with pytest.raises(RunError, match=f"1 are not, first 'p{gone:04d}'"):
        start(splits=part(i for i in range(200) if i != gone))


def test_images_stay_normalised_as_the_run_began(start: Any) -> None:
    first, second = replace(TASK, mean=(0.4,), std=(0.2,)), replace(TASK, mean=(0.5,), std=(0.3,))
    start(task=first, splits=part(range(200))).close()
    with start(task=second, splits=part(range(220))) as run:
        assert (run.task.mean, run.task.std) == ((0.4,), (0.2,))


def test_hashes_of_ids_are_read_back() -> None:
    found = _hashes([f"id-{i}" for i in range(1000)])
    assert len(set(found.tolist())) == 1000
    assert (_decode(_encode(found)) == found).all()


@pytest.mark.parametrize("name", ["waiting", "finished"])
def test_ledgers_of_version_1_are_read_and_gone_on_with(
    start: Any, tmp_path: Path, name: str
) -> None:
    """Written by the version before passes and extensions, for the data set of these tests."""
    (tmp_path / "old").mkdir()
    shutil.copy(LEDGERS / f"{name}-version-1.sqlite", tmp_path / "old" / "ledger.sqlite")
    before = read_run(tmp_path / "old")
    assert before.strategy == "margin"
    assert len(before.cycles) == (1 if name == "waiting" else 3)
    whole = start("new").run()
    with warnings.catch_warnings():  # on another machine than this one
        warnings.filterwarnings("ignore", message=".*under other circumstances than before")
        old = start("old")
    assert old.changes == []
    result = old.run()
    old.close()
    assert result.labels == whole.labels
    assert [c.asked for c in result.cycles] == [c.asked for c in whole.cycles]
    for ours, theirs in zip(result.cycles, whole.cycles, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-6)  # rounded there otherwise
    if name == "waiting":  # from where it stood on, trained here
        more = start("old", settings=replace(SETTINGS, cycles=4)).run()
        assert [c.n_labelled for c in more.cycles] == [20, 30, 40, 50]
    db = sqlite3.connect(tmp_path / "old" / "ledger.sqlite")
    labels = dict(db.execute("SELECT id, label FROM labels").fetchall())
    db.close()
    assert labels == read_run(tmp_path / "old").labels


def test_a_pool_cannot_grow_where_its_ids_were_not_recorded(start: Any, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    shutil.copy(LEDGERS / "finished-version-1.sqlite", tmp_path / "old" / "ledger.sqlite")
    with pytest.raises(RunError, match=r"samples.pool: 200 there, 220 now"):
        start("old", splits=splits(220))


def compared(folder: Path, names: str, seeds: list[int], **settings: Any) -> Any:
    return compare(
        folder,
        strategies={name: strategies.build(name) for name in names.split()},
        seeds=seeds,
        splits=splits(),
        task=TASK,
        model=MODEL,
        settings=replace(SETTINGS, **settings),
        training=TRAINING,
        device="cpu",
    )


def test_a_comparison_is_extended_as_a_whole(tmp_path: Path) -> None:
    compared(tmp_path, "random margin", [0, 1])
    result = compared(tmp_path, "random margin", [0, 1], cycles=4, budget=20)
    summary = report.summarise(report.study_of([r for rs in result.runs.values() for r in rs]))
    assert summary.budgets == (20, 30, 40, 60)
    notes = report.tables.notes(summary)
    assert any("Changed in 4 of 4 runs: from cycle 4 on" in note for note in notes)
    with pytest.raises(ConfigError, match="begin at one cycle of all runs"):
        compared(tmp_path, "random margin", [0, 1, 2], cycles=4, budget=20)
    compared(tmp_path, "random margin", [0, 1], cycles=4, budget=20)  # again: nothing


def test_networks_that_did_not_fit_are_named(tmp_path: Path, start: Any) -> None:
    short = start("short").run()
    assert [c.cycle for c in short.unfitted] == [0, 1, 2]  # two epochs
    words = dict(lines(status(short)))
    assert "cycles 1, 2, 3: training accuracy below 95%" in words["not fitted"]
    notes = report.tables.notes(report.summarise(report.study_of([short])))
    assert any("Not fitted" in note and "20, 30, 40 labels" in note for note in notes)
    long = start("long", training=TrainingSettings(epochs=150, batch_size=8)).run()
    assert long.cycles[-1].train_metrics["accuracy"] >= 0.95
    assert long.unfitted == ()
    assert "not fitted" not in dict(lines(status(long)))
