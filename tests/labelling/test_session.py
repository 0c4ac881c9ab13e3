"""What the page shows: one sample stays until it is answered, and nobody sees another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pictures import make_squares
from PIL import Image

from upslope.errors import DataError
from upslope.labelling.contents import replaced_samples
from upslope.labelling.project import Project
from upslope.labelling.queue import BY_STRATEGY, RANDOM
from upslope.labelling.ranking import Guess, Ranking
from upslope.labelling.samples import FolderImages, open_samples
from upslope.labelling.session import QUESTIONS_FILE, Session, sample_key
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import CONTROL, SKIP


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    make_squares(tmp_path / "squares", 40)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    with Project.create(tmp_path / "project", settings) as project:
        yield Session(project, open_samples(settings.data, settings.classes))


def first(session: Session, author: str = "me") -> dict[str, Any]:
    return dict(session.status(author)["questions"][0])


def answer(session: Session, author: str = "me", **other: Any) -> str:
    question = first(session, author)
    body = {"sample": question["sample"], "seconds": 1.0, **(other or {"label": "red"})}
    session.answer(author, body)
    return str(question["id"])


def ranking(session: Session, ids: list[str], **other: Any) -> Ranking:
    return Ranking(ids, "margin chose it", **other)


def test_what_is_shown_stays_until_it_is_answered(session: Session) -> None:
    shown = first(session)
    others = [i for i in session.queue.others if i != shown["id"]]
    session.take_ranking(ranking(session, others[::-1]))
    assert first(session)["id"] == shown["id"]
    assert session.status("me")["questions"][1]["id"] in others  # what follows is the new ranking's
    answer(session)
    assert first(session)["id"] != shown["id"]


def test_an_answer_to_what_was_answered_in_another_window_is_refused(session: Session) -> None:
    shown = first(session)
    fields = ("sample", "corrects")
    body = {key: shown[key] for key in fields}
    session.answer("me", {**body, "label": "red"})
    session.answer("me", {**body, "label": "red"})  # the same request, come twice
    for other in ({"label": "blue"}, {"reason": SKIP}, {"label": "red", "note": "dark"}):
        with pytest.raises(DataError, match=r"meanwhile, as 'red'.*&name=Ann"):
            session.answer("me", {**body, **other})
    session.answer("ann", {**body, "label": "blue"})  # of another person: no conflict
    session.review("me", shown["sample"])
    again = first(session)
    assert again["answer"]["label"] == "red"
    session.answer("me", {**{key: again[key] for key in fields}, "label": "blue"})
    session.review("me", shown["sample"])
    assert first(session)["answer"]["label"] == "blue"


def test_two_people_are_never_shown_one_sample(session: Session) -> None:
    answered: list[str] = []
    while session.status("ann")["questions"]:
        for author in ("ann", "bob"):
            if session.status(author)["questions"]:
                other = "bob" if author == "ann" else "ann"
                shown = session._questions_open.get(other)
                assert first(session, author)["id"] != (shown and shown[0].id)
                answered.append(answer(session, author))
    assert sorted(answered) == sorted(session.samples.ids)
    assert session.status("bob")["progress"]["remaining"] == 0


def test_what_people_look_at_survives_a_server_that_is_killed(session: Session) -> None:
    answer(session, "ann")
    shown = {author: first(session, author)["id"] for author in ("ann", "bob")}
    again = Session(session.project, session.samples)
    assert first(again, "cem")["id"] not in shown.values()
    assert {author: first(again, author)["id"] for author in shown} == shown
    (session.project.folder / QUESTIONS_FILE).write_text("torn")
    assert first(Session(session.project, session.samples), "ann")["id"]


def test_questions_come_where_what_people_look_at_cannot_be_written(session: Session) -> None:
    """As on a full disk: an answer that was recorded was told as one that was not."""
    (session.project.folder / QUESTIONS_FILE).mkdir()
    one, two = answer(session), answer(session)
    assert set(session.project.state.answers) == {one, two}


def test_undo_shows_the_sample_again_and_then_the_one_before_it(session: Session) -> None:
    one, two = answer(session), answer(session)
    assert session.undo("me")
    assert first(session)["id"] == two
    assert session.undo("me")
    assert first(session)["id"] == one
    assert not session.undo("me")
    assert not session.undo("somebody else")
    assert answer(session) == one


def test_an_undo_of_a_named_sample_that_comes_twice_takes_one_answer_back(
    session: Session,
) -> None:
    one, two = answer(session), answer(session)
    assert session.undo("me", sample_key(two))
    assert not session.undo("me", sample_key(two))
    assert set(session.project.state.answers) == {one}
    assert first(session)["id"] == two
    with pytest.raises(DataError, match="the key of a sample of the project but got 'x'"):
        session.undo("me", "x")


def test_a_second_look_keeps_or_corrects(session: Session) -> None:
    one = answer(session)
    waiting = first(session)["id"]
    sample = sample_key(one)
    session.review("me", sample)
    looked_at = first(session)
    assert (looked_at["id"], looked_at["answer"]["label"]) == (one, "red")
    session.leave("me", one)
    assert first(session)["id"] == waiting
    session.review("me", sample)
    answer(session, label="blue")
    assert session.project.state.answers[one]["me"].label == 1
    assert first(session)["id"] == waiting
    with pytest.raises(DataError, match="with an answer of me"):
        session.review("me", sample_key(waiting))


def test_the_guess_is_not_sent_before_it_is_asked_for(session: Session) -> None:
    shown = first(session)
    near = next(i for i in session.samples.ids if i != shown["id"])
    guesses = {shown["id"]: Guess([("blue", 0.9), ("red", 0.1)], near)}
    session.take_ranking(ranking(session, [shown["id"]], guesses=guesses))
    assert "0.9" not in repr(session.status("me")["questions"])
    assert first(session)["has_guess"]
    guess = session.guess(shown["sample"])
    assert guess is not None
    assert guess["classes"][0] == ["blue", 0.9]
    assert guess["nearest"] is None  # it has no label
    session.project.answer(near, "blue", author="me")
    guess = session.guess(shown["sample"])
    assert guess is not None
    assert guess["nearest"]["label"] == "blue"
    session.answer("me", {"sample": shown["sample"], "label": "blue", "guess_shown": True})
    assert session.project.state.answers[shown["id"]]["me"].guess_shown


def test_the_slice_is_recorded_with_the_answer(session: Session) -> None:
    for _ in range(20):
        answer(session)
    for id_, by_author in session.project.state.answers.items():
        assert (by_author["me"].slice == CONTROL) == session.queue.is_control(id_)


def test_why_a_sample_was_asked_is_recorded_as_it_was_when_it_was_shown(session: Session) -> None:
    by_chance = first(session)  # no ranking yet
    session.take_ranking(ranking(session, session.queue.others))
    answer(session)
    chosen = first(session)
    while session.queue.is_control(chosen["id"]):
        answer(session)
        chosen = first(session)
    session.take_ranking(ranking(session, []))
    again = Session(session.project, session.samples)  # killed, and started again
    assert first(again)["why"] == chosen["why"]
    answer(again)
    answers = session.project.state.answers
    assert answers[by_chance["id"]]["me"].slice == by_chance["slice"] == RANDOM
    assert answers[chosen["id"]]["me"].slice == chosen["slice"] == BY_STRATEGY


def test_a_sample_that_is_shown_keeps_its_guess_when_a_ranking_without_it_comes(
    session: Session,
) -> None:
    shown = first(session)
    guess = Guess([("blue", 0.9), ("red", 0.1)])
    session.take_ranking(ranking(session, [shown["id"]], guesses={shown["id"]: guess}))
    session.take_ranking(ranking(session, []))
    session.take_ranking(ranking(session, []))
    guess_sent = session.guess(shown["sample"])
    assert guess_sent is not None
    assert guess_sent["classes"][0] == ["blue", 0.9]
    assert first(session)["has_guess"]
    answer(session)
    session.take_ranking(ranking(session, []))
    assert session.guess(shown["sample"]) is None


def test_measurements_are_recorded_every_few_labels(session: Session) -> None:
    for labels in (10, 11, 14, 15, 30):
        session.take_ranking(ranking(session, [], labels=labels, correct=3, of=4))
    assert [m.labels for m in session.project.state.measurements] == [10, 15, 30]
    accuracy = session.status("me")["model"]["accuracy"]
    assert accuracy["value"] == 0.75
    assert (accuracy["low"], accuracy["high"]) == (
        pytest.approx(0.3006, abs=1e-4),  # Wilson's, by hand
        pytest.approx(0.9544, abs=1e-4),
    )


def test_counts(session: Session) -> None:
    for body in ({"label": "red"}, {"label": "red"}, {"label": "blue"}, {"reason": SKIP}):
        answer(session, **body)
    unreadable = session.queue.others[-1]
    session.take_ranking(ranking(session, [], unreadable=[unreadable]))
    progress = session.status("me")["progress"]
    assert progress["classes"] == {"red": 2, "blue": 1}
    assert (progress["labelled"], progress["passed"], progress["unreadable"]) == (3, 1, 1)
    assert progress["remaining"] == 35


def test_a_page_that_was_open_means_the_sample_it_shows(tmp_path: Path) -> None:
    """Photographs come and go while the project is closed, and a page may stay open: an answer is
    for what was shown, and what is gone is refused."""
    make_squares(tmp_path / "squares", 6)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    with Project.create(tmp_path / "project", settings) as project:
        session = Session(project, open_samples(settings.data, settings.classes))
        shown, following = session.status("me")["questions"][:2]
        opening = session.describe("me")["opening"]
    (tmp_path / "squares" / following["id"]).unlink()
    copy = (tmp_path / "squares" / shown["id"]).read_bytes()
    (tmp_path / "squares" / "before-all-others.png").write_bytes(copy)
    with Project(tmp_path / "project") as project:
        session = Session(project, open_samples(settings.data, settings.classes))
        session.answer("me", {"sample": shown["sample"], "label": "blue"})
        assert list(project.state.answers) == [shown["id"]]
        with pytest.raises(DataError, match="its file is gone"):
            session.answer("me", {"sample": following["sample"], "label": "red"})
        # Pictures that a browser keeps are not shown for those of another time or project.
        assert session.describe("me")["opening"] != opening


def test_a_clock_that_is_set_back_holds_no_sample(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = first(session, "ann")["id"]
    monkeypatch.setattr("time.time", lambda: 0.0)
    asked = {first(session, "bob")["id"]}
    while session.status("bob")["questions"]:
        asked.add(answer(session, "bob"))
    assert shown in asked


def test_an_image_that_was_replaced_is_told_until_it_is_answered_again(session: Session) -> None:
    samples, project = session.samples, session.project
    assert isinstance(samples, FolderImages)
    id_ = answer(session)
    other_id = answer(session)
    assert replaced_samples(samples, project.state.contents) == []
    Image.new("RGB", (30, 30)).save(samples.root / id_)
    assert replaced_samples(samples, project.state.contents) == [id_]
    session.review("me", sample_key(id_))
    assert answer(session) == id_  # the same answer as before, now of the other image
    assert replaced_samples(samples, project.state.contents) == []
    assert len(project.state.answers) == 2
    Image.new("RGB", (30, 30)).save(samples.root / other_id)
    session.undo("me", sample_key(other_id))  # without an answer nothing is to be told
    assert replaced_samples(samples, project.state.contents) == []
