"""What annotators say: classes by name or number, label sets, numbers; passes and corrections."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_tasks import Points, opening, splits
from upslope import datasets, models, strategies, tasks
from upslope.errors import DataError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.ledger import read_run
from upslope.progress import Interrupted, Progress, Stop
from upslope.tasks.answers import class_label, label_set, numbers
from upslope.training import TrainingSettings, loop

SETTINGS = ExperimentSettings(initial=8, budget=4, cycles=3)
TRAINING = TrainingSettings(epochs=1, batch_size=8)
UNLABELLED = replace(splits(60), pool=Points(60, labelled=False))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with opening(tmp_path, splits=UNLABELLED, settings=SETTINGS, training=TRAINING) as open_one:
        yield open_one


def truth(ids: tuple[str, ...]) -> dict[str, int]:
    pool = Points(60)
    return {i: int(pool.targets([pool.ids.index(i)])) for i in ids}


def test_names_are_taken_always_and_numbers_where_they_can_mean_one_class() -> None:
    assert class_label("dog", ("cat", "dog")) == class_label(1, ("cat", "dog")) == 1
    assert class_label(np.int64(1), ("cat", "dog")) == class_label(torch.tensor(1), ("a", "b")) == 1
    digits = tuple(str(i) for i in range(10))
    assert [class_label(i, digits) for i in (0, 9)] == [0, 9]
    for classes, name, position in (
        (("1", "2", "3"), "1", 0),
        (("01", "02"), "02", 1),
        (("-1", "1"), "1", 1),
        (("1.0", "2.0"), "1.0", 0),
        (("cat", "7"), "7", 1),
    ):
        assert class_label(name, classes) == position
        for number in range(len(classes)):
            with pytest.raises(DataError, match="may mean a name or a position"):
                class_label(number, classes)
    for wrong in (2, -1, True, 1.0, None, "Cat", "0", b"cat", ["cat"]):
        with pytest.raises(DataError):
            class_label(wrong, ("cat", "dog"))
    with pytest.raises(DataError, match="2 have it"):
        class_label("a", ("a", "a"))


def test_label_sets_and_numbers() -> None:
    names = ("red", "old", "wet")
    assert label_set(["wet", "red"], names) == label_set([1, 0, 1], names) == [1, 0, 1]
    assert label_set(torch.tensor([0, 0, 1]), names) == label_set({"wet"}, names) == [0, 0, 1]
    assert label_set([], names) == [0, 0, 0]
    for wrong in ("red", [1, 0], [2, 0, 1], ["blue"], 1, None, [1, "red", 0]):
        with pytest.raises(DataError):
            label_set(wrong, names)
    assert numbers(3, ("price",)) == numbers([3.0], ("price",)) == [3.0]
    assert numbers(np.array([1.5, 2]), ("a", "b")) == [1.5, 2.0]
    for one in (np.float32(3), np.float64(3), np.int64(3), torch.tensor(3.0), torch.tensor(3)):
        for answer in (one, [one]):
            (number,) = numbers(answer, ("price",))
            assert (type(number), number) == (float, 3.0)
    for wrong in ("3", np.float32("nan"), float("inf"), True, np.True_, [1.0, 2.0], [], None):
        with pytest.raises(DataError):
            numbers(wrong, ("price",))


def test_classes_named_by_numbers_are_recorded_as_named(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i % 3 + 1}" for i in range(30))
    (tmp_path / "t.csv").write_text("x,label\n" + rows)
    found = datasets.load("table", root=tmp_path / "t.csv")
    model = partial(models.build, "mlp", num_classes=3, input_shape=found.pool.input_shape)
    with Experiment(
        tmp_path / "run",
        splits=found,
        task=tasks.build("classification", num_classes=3),
        model=model,
        strategy=strategies.build("margin"),
        settings=ExperimentSettings(initial=4, budget=2, cycles=2),
        training=TRAINING,
        device="cpu",
    ) as run:
        first = run.ask()[0]
        with pytest.raises(DataError, match="class '1' is at position 0"):
            run.tell({first: 1})
        run.tell({first: "1"})
        assert found.pool.classes[run.state.labels[first]] == "1"  # type: ignore[index]


def test_the_same_again_a_correction_and_an_answer_taken_back(start: Any) -> None:
    run = start()
    first, second, *rest = run.ask()
    run.tell({first: "left"})
    run.tell({first: 0})
    assert [e for e in events(run) if e[0] == "corrected"] == []
    run.tell({first: "far", second: "right"})
    assert run.state.labels == {first: 2, second: 1}
    run.take_back(first)
    assert run.state.labels == {second: 1}
    assert run.ask() == (*rest, first)
    run.tell({first: "right"})
    assert labels_of(run) == {first: 1, second: 1}
    kinds = [kind for kind, _ in events(run)]
    assert kinds[-4:] == ["labelled", "corrected", "taken_back", "labelled"]
    assert f'"before": {{"{first}": 0}}' in dict(events(run))["corrected"]
    with pytest.raises(DataError, match="has none"):
        run.take_back([rest[0]])
    with pytest.raises(DataError, match="not in the pool"):
        run.take_back(["nobody"])


def test_a_correction_counts_from_the_next_training_on(start: Any) -> None:
    """The corrected run trains its next model as one that had the right label from the start."""
    wrong, right = start("wrong", "random"), start("right", "random")
    ids = wrong.ask()
    assert right.ask() == ids
    answers = truth(ids)
    wrong.tell({**answers, ids[0]: (answers[ids[0]] + 1) % 3})
    right.tell(answers)
    wrong.ask()
    wrong.tell({ids[0]: answers[ids[0]]})
    for run in (wrong, right):
        run.tell(truth(run.ask()))
    wrong.ask()
    right.ask()
    first, second = (run.result().cycles for run in (wrong, right))
    assert first[0].model_sha256 != second[0].model_sha256
    assert first[1].model_sha256 == second[1].model_sha256
    assert dict(labels_of(wrong))[ids[0]] == answers[ids[0]]


@pytest.mark.parametrize("strategy", ["margin", "random", "core-set"])
def test_others_are_asked_for_those_passed(start: Any, strategy: str) -> None:
    run = start(strategy=strategy)
    asked = run.ask()
    run.skip(asked[:2], "blurred")
    again = run.ask()
    assert again[:6] == asked[2:]
    assert len(again) == 8
    run.skip({again[-1]: "torn"})
    run.tell(truth(run.ask()))
    second = run.ask()
    assert len(second) == 4
    run.tell(truth(second[:1]))
    run.skip(second[1])
    run.tell(truth(run.ask()))
    third = run.ask()
    run.tell(truth(third))
    assert run.ask() == ()
    result = run.result()
    assert [c.n_labelled for c in result.cycles] == [8, 12, 16]
    reasons = {asked[0]: "blurred", asked[1]: "blurred", again[-1]: "torn", second[1]: ""}
    assert result.passed == reasons
    assert not set(result.passed) & set(result.labels)
    assert len(result.labels) == 16


def test_the_next_by_score_is_asked_for_one_passed(start: Any) -> None:
    """Margin takes the highest scores: with one passed, those of the whole ranking without it."""
    five = replace(SETTINGS, budget=5, candidates="all")
    four = replace(SETTINGS, candidates="all")
    whole, run = start("whole", settings=five), start("run", settings=four)
    for one in (whole, run):
        one.tell(truth(one.ask()))
    ranking = whole.ask()
    asked = run.ask()
    assert asked == ranking[:4]
    run.skip([asked[1]])
    assert run.ask() == (asked[0], *asked[2:], ranking[4])
    last = run.result().cycles[-1]
    assert last.asked == ranking
    assert list(last.scores) == list(whole.result().cycles[-1].scores)


def test_passes_are_refused_where_they_cannot_be_and_taken_back(start: Any) -> None:
    run = start()
    first, second, third, *_ = run.ask()
    run.tell({first: 0})
    other = next(i for i in Points(60).ids if i not in run.state.initial)
    for wrong in (first, other, "nobody"):
        with pytest.raises(DataError):
            run.skip([second, wrong])
    assert run.state.passed == {}
    run.skip(second)
    run.skip(second)  # again: nothing
    run.tell({second: 1})  # changed their mind before another was asked
    assert second not in run.state.passed
    run.skip(third)
    run.ask()
    run.take_back([third])
    assert third not in run.state.passed
    assert third not in run.ask()  # in the pool again, and its place is taken


@pytest.mark.parametrize("when", ["waiting", "next cycle", "finished"])
def test_an_answer_after_a_pass_counts_from_the_next_training_on(start: Any, when: str) -> None:
    run = start()
    late, *_ = run.ask()
    run.skip(late, "blurred")
    assert len(run.ask()) == 8
    if when == "waiting":
        run.tell(truth((late,)))
    run.tell(truth(run.ask()))
    second = run.ask()
    if when == "next cycle":
        run.tell(truth((late,)))
    run.tell(truth(second))
    run.tell(truth(run.ask()))
    assert run.ask() == ()
    if when == "finished":
        run.tell(truth((late,)))
    counts = {"waiting": [9, 13, 17], "next cycle": [8, 13, 17], "finished": [8, 12, 16]}
    assert [c.n_labelled for c in run.result().cycles] == counts[when]
    assert run.state.passed == {}
    assert labels_of(run)[late] == truth((late,))[late]
    taken = json.loads(dict(events(run))["taken_back"])
    assert taken == {"labels": {}, "passed": {late: "blurred"}, "asked": [late]}


def test_an_answer_after_a_pass_trains_as_if_given_at_once(start: Any) -> None:
    """A run with nine answers, one late, trains the same first model as one asked for nine."""
    run, nine = (
        start("late", "random"),
        start("nine", "random", settings=replace(SETTINGS, initial=9)),
    )
    late, *_ = run.ask()
    run.skip(late)
    run.tell(truth((*run.ask(), late)))
    nine.tell(truth(nine.ask()))
    run.ask()
    nine.ask()
    assert set(run.state.initial) == set(nine.state.initial)
    one, other = run.result().cycles[0], nine.result().cycles[0]
    assert (one.n_labelled, one.train_metrics) == (other.n_labelled, other.train_metrics)
    assert one.model_sha256 == other.model_sha256


def test_none_passes_where_nobody_knows_and_trusts_the_data_set_where_it_does(start: Any) -> None:
    run = start()
    first, *_ = run.ask()
    run.tell({first: None})
    assert run.state.passed == {first: ""}
    known = start("known", splits=splits(60))
    ids = known.ask()
    known.tell(dict.fromkeys(ids))
    assert known.state.labels == truth(ids)


def test_a_pool_without_others_asks_for_fewer(start: Any) -> None:
    run = start(settings=ExperimentSettings(initial=58, cycles=1))
    asked = run.ask()
    run.skip(asked[:5])
    assert len(run.ask()) == 55  # two were left
    run.tell(truth(run.ask()))
    assert run.ask() == ()
    assert run.result().cycles[0].n_labelled == 55


def test_answers_for_label_sets_and_numbers_train(tmp_path: Path) -> None:
    rows = [f"{i},{i % 2},{int(i > 6)}" if i < 12 else f"{i},," for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,red,wet", *rows]))
    for kind, task, answers in (
        ("labels", "multi-label", (["red"], [0, 1], [])),
        ("numbers", "regression", ([1.5, 2.0], [0, 1], [3.0, 4])),
    ):
        found = datasets.load("table", root=tmp_path / "t.csv", target="red,wet", kind=kind)
        with Experiment(
            tmp_path / kind,
            splits=found,
            task=tasks.build(task, num_classes=2, classes=found.pool.classes),
            model=partial(models.build, "mlp", num_classes=2, input_shape=(1,)),
            strategy=strategies.build("random"),
            settings=ExperimentSettings(initial=6, budget=2, cycles=2),
            training=TRAINING,
            device="cpu",
        ) as run:
            ids = run.ask()
            run.tell({i: answers[n % 3] for n, i in enumerate(ids)})
            stored = run.state.labels[ids[0]]
            assert stored == ([1, 0] if kind == "labels" else [1.5, 2.0])
            with pytest.raises(DataError):
                run.tell({ids[0]: "red"})
            assert len(run.ask()) == 2
            assert run.result().cycles[0].n_labelled == 6


def test_opened_anew_before_every_step_it_is_the_same_run(start: Any) -> None:
    """What a killed process leaves is its ledger and its models: nothing else counts."""

    def work(opened: Any) -> Any:
        asked = opened().ask()
        opened().skip(asked[:3], "blurred")
        opened().tell(truth(asked[3:5]))
        opened().take_back([asked[3], asked[0]])
        asked = opened().ask()
        opened().tell(truth(asked))
        opened().tell({asked[0]: "far"})
        asked = opened().ask()
        opened().skip([asked[1]])
        asked = opened().ask()
        opened().tell(truth(asked))
        while asked := opened().ask():
            opened().tell(truth(asked))
        return opened().result()

    class Anew:
        run: Any = None

        def __call__(self) -> Any:
            if self.run is not None:
                self.run.close()
            self.run = start("anew")
            return self.run

    one = start("one")
    whole, pieces = work(lambda: one), work(Anew())
    assert pieces.labels == whole.labels
    assert pieces.passed == whole.passed
    assert [(c.model_sha256, c.asked, c.scores, c.metrics) for c in pieces.cycles] == [
        (c.model_sha256, c.asked, c.scores, c.metrics) for c in whole.cycles
    ]


def test_a_correction_ends_a_training_in_progress(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in training, corrected and gone on with: as one that had the right label."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    long = TrainingSettings(epochs=6, batch_size=4)
    stop, seen = Stop(), []

    def watch(progress: Progress) -> None:
        if progress.phase == "train":
            seen.append(progress)
            if len(seen) == 8:
                stop.request()

    stopped = start("stopped", training=long, observer=watch, stop=stop)
    ids = stopped.ask()
    answers = truth(ids)
    stopped.tell({**answers, ids[0]: (answers[ids[0]] + 1) % 3})
    with pytest.raises(Interrupted):
        stopped.ask()
    assert (stopped.path / "training.safetensors").exists()
    stopped.close()
    again = start("stopped", training=long)
    again.tell({ids[0]: answers[ids[0]]})
    again.ask()
    right = start("right", training=long)
    right.tell(truth(right.ask()))
    right.ask()
    assert again.result().cycles[0].model_sha256 == right.result().cycles[0].model_sha256


def events(run: Experiment) -> list[tuple[str, str]]:
    db = sqlite3.connect(run.path / "ledger.sqlite")
    try:
        return db.execute("SELECT kind, body FROM events ORDER BY number").fetchall()
    finally:
        db.close()


def labels_of(run: Experiment) -> dict[str, Any]:
    """Labels as any tool reads them."""
    db = sqlite3.connect(run.path / "ledger.sqlite")
    try:
        found = dict(db.execute("SELECT id, label FROM labels").fetchall())
    finally:
        db.close()
    assert found == read_run(run.path).labels
    return found
