"""Answers that come, change or go between the steps of a run, and pools that run out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from small_tasks import MODEL, TASK, Points, splits
from upslope import strategies
from upslope.errors import DataError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.progress import Progress
from upslope.training import TrainingSettings

SETTINGS = ExperimentSettings(initial=20, budget=10, cycles=3)


def opened(
    path: Path,
    settings: ExperimentSettings = SETTINGS,
    n: int = 60,
    observer: Callable[[Progress], None] | None = None,
) -> Experiment:
    return Experiment(
        path,
        splits=splits(n),
        task=TASK,
        model=MODEL,
        strategy=strategies.build("margin"),
        settings=settings,
        training=TrainingSettings(epochs=1, batch_size=8),
        device="cpu",
        observer=observer,
        progress=False,
    )


def truth(ids: tuple[str, ...], n: int = 60) -> dict[str, int]:
    pool = Points(n)
    return {i: int(pool.targets([pool.ids.index(i)])) for i in ids}


class KilledError(Exception):
    """Stands for a kill before the evaluation."""


def stop_before_evaluation(progress: Progress) -> None:
    if progress.phase == "evaluate":
        raise KilledError


@pytest.mark.parametrize("change", ["none", "corrected", "taken back and answered"])
@pytest.mark.filterwarnings("ignore:Expected the labels")
def test_training_figures_are_on_the_labels_that_were_trained_on(
    tmp_path: Path, change: str
) -> None:
    figures = []
    for name in ("whole", "killed"):
        observer = None if name == "whole" else stop_before_evaluation
        with opened(tmp_path / name, observer=observer) as run:
            ids = run.ask()
            run.tell(truth(ids))
            if name == "whole":
                run.ask()
                figures.append(run.result().cycles[0].train_metrics)
                continue
            with pytest.raises(KilledError):
                run.ask()
            others = {i: (label + 1) % 3 for i, label in truth(ids[:5]).items()}
            if change == "taken back and answered":
                run.take_back(others)
            if change != "none":
                run.tell(others)
        with opened(tmp_path / name) as run:
            run.ask()
            figures.append(run.result().cycles[0].train_metrics)
    assert figures[0] == figures[1]


def test_scores_stay_where_nobody_can_be_asked_instead(tmp_path: Path) -> None:
    settings = ExperimentSettings(initial=20, budget=10, cycles=2)
    with opened(tmp_path / "run", settings, n=30) as run:
        run.tell(truth(run.ask(), 30))
        asked = run.ask()
        scores = run.result().cycles[0].scores
        run.skip(asked[:1])
        assert set(run.ask()) == set(asked[1:])
        cycle = run.result().cycles[0]
    assert scores is not None
    assert (cycle.asked, cycle.scores) == (asked, scores)


def test_the_last_cycle_asks_what_is_left_after_passes(tmp_path: Path) -> None:
    settings = ExperimentSettings(initial=20, budget=20, cycles=3)
    with opened(tmp_path / "run", settings) as run:
        ids = run.ask()
        run.answer(truth(ids[3:]), dict.fromkeys(ids[:3], "blurred"))
        counts = []
        while ids := run.ask():
            counts.append(len(ids))
            run.tell(truth(ids))
        assert counts == [3, 20, 17]
        assert run.finished
        assert [c.n_labelled for c in run.result().cycles] == [20, 40, 57]


@pytest.mark.parametrize("pair", [("labels", "passed"), ("labels", "back"), ("passed", "back")])
def test_two_answers_for_one_sample_in_a_call_are_refused(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    with opened(tmp_path / "run") as run:
        ids = run.ask()
        run.answer(truth(ids[1:]), {ids[0]: "blurred"})
        before, id_ = run.state, ids[0] if "passed" in pair and "back" in pair else ids[1]
        parts: dict[str, Any] = {"labels": {id_: 0}, "passed": {id_: ""}, "back": [id_]}
        given = [parts[name] if name in pair else () for name in ("labels", "passed", "back")]
        with pytest.raises(DataError, match=rf"one answer for '{id_}' but it is labelled, passed"):
            run.answer(given[0] or {}, given[1] or {}, given[2])
        assert run.state == before
