"""Advice to who labels: measured on control answers alone, and said in hours and money."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import make_squares

from upslope.evaluation import PredictedGain, Saving
from upslope.labelling.advice import Advice, advise, sentences
from upslope.labelling.events import fold
from upslope.labelling.features import standardise
from upslope.labelling.learner import Learner
from upslope.labelling.project import Project, read_project
from upslope.labelling.queue import Queue
from upslope.labelling.ranking import Ranking
from upslope.labelling.samples import open_samples
from upslope.labelling.session import Session
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import BY_IMPORT, CONTROL, LabelState
from upslope.labelling.status import lines, status
from upslope.ledger import Event

IDS = [f"s{i:03d}" for i in range(400)]
CLASSES = np.arange(400) % 3
FEATURES = standardise(
    (1.5 * np.eye(3)[CLASSES] + np.random.default_rng(0).normal(size=(400, 3))).astype(np.float32)
)
GAIN = PredictedGain(0.02, 0.004, 0.03, 0.06, 100, 50, 60, 0.95)
SAVING = Saving(40, 0.7, 0.05, -0.01, 0.11, 30.0, 20.0, 44.0, 60, 0.95)


@pytest.fixture
def learner() -> Learner:
    settings = ProjectSettings("x", ("a", "b", "c"), control=0.3)
    return Learner(settings, IDS, Queue(IDS, settings), FEATURES, "given")


def told(learner: Learner, count: int, control: int, slice_: str = "strategy") -> LabelState:
    parts = ((learner.queue.others[:count], slice_), (learner.queue.control[:control], CONTROL))
    events = [
        Event(
            "labelled",
            0,
            {"labels": {i: int(CLASSES[IDS.index(i)])}, "author": "me", "slice": name},
        )
        for ids, name in parts
        for i in ids
    ]
    return fold(events)


def test_advice_is_measured_on_control_answers(learner: Learner) -> None:
    state = told(learner, 120, 60)
    advice = advise(learner, state)
    assert advice is not None
    assert (advice.gain.labels, advice.gain.of) == (120, 60)
    assert advice.gain.low <= advice.gain.value <= advice.gain.high
    assert advice.saving is not None
    assert (advice.saving.random_labels, advice.saving.of) == (45, 60)
    assert 0.5 < advice.saving.accuracy < 1
    # Of samples asked at random the strategy saves nothing: the interval says so.
    assert advice.saving.needed_low <= 45 <= advice.saving.needed_high
    assert Advice.from_record(advice.record()) == advice
    assert advise(learner, state) == advice


def test_there_is_no_advice_without_control_answers_or_labels(learner: Learner) -> None:
    assert advise(learner, told(learner, 120, 10)) is None
    assert advise(learner, told(learner, 30, 60)) is None
    closed = fold([Event("closed", 0, {})], told(learner, 120, 60))
    assert advise(learner, closed) is None
    imported = advise(learner, told(learner, 120, 60, BY_IMPORT))
    assert imported is not None
    assert imported.saving is None


def test_labels_become_hours_and_money() -> None:
    saving, gain = sentences(Advice(GAIN, SAVING), seconds=3.0, control=0.2, wage=12.0)
    assert "reach 70% with 40 of them" in saving
    assert "with 30: 25% fewer (saving: 95% interval -10% to 50%)" in saving
    assert "0.5 minutes, 0.10 at 12 an hour" in saving  # ten answers of three seconds
    assert "2.0 points (95% interval 0.4 to 3.0)" in gain
    assert "62 answers, 3.1 minutes, 0.62 at 12 an hour" in gain
    assert "60 control answers can show a gain of 6.0 points or more" in gain
    late = sentences(Advice(replace(GAIN, high=0.009), None), None, 0.2, None)
    assert len(late) == 2
    assert "More labels will hardly pay" in late[1]
    nowhere = Saving(40, 0.7, *[float("nan")] * 3, *[float("inf")] * 3, 60, 0.95)
    assert "not been shown" in sentences(Advice(GAIN, nowhere), 3.0, 0.2, None)[0]
    assert Advice.from_record(Advice(GAIN, nowhere).record()).saving.needed == float("inf")  # type: ignore[union-attr]


def test_page_and_status_say_the_last_advice(tmp_path: Path) -> None:
    make_squares(tmp_path / "squares", 10)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    pays = Advice(GAIN, SAVING)
    hardly = Advice(replace(GAIN, value=0.001, high=0.002), SAVING)
    with Project.create(tmp_path / "p", settings) as project:
        session = Session(project, open_samples(settings.data, settings.classes), wage=20.0)
        assert session.status("me")["model"]["advice"] == []
        for advice in (pays, pays, hardly):
            session.take_ranking(Ranking([], "margin", labels=100, of=20, advice=advice.record()))
        model = session.status("me")["model"]
        assert model["hardly_pays"]
        assert "hardly pay" in model["advice"][-1]
        project.answer("square-000.png", "red", author="ann")  # in a sheet, which tells no time
        words = " ".join(status(project.folder, 20)["advice_lines"])
        assert not any(word in words for word in ("hours", "minutes", "at 20"))
        project.answer("square-001.png", "red", author="ann", seconds=36.0)
        (_, gain, _) = status(project.folder, 20)["advice_lines"]
        answers = GAIN.more / (1 - settings.control)
        assert f"{answers * 36 / 60:.1f} minutes" in gain
        project.close_control()
        assert session.status("me")["model"]["advice"] == []
    _, state = read_project(tmp_path / "p")
    assert [m.advice for m in state.measurements] == [pays.record(), hardly.record()]
    assert not [text for title, text in lines(status(tmp_path / "p")) if title == "advice"]
