"""Which sample comes next: a random control slice, the ranking, and never nothing."""

from __future__ import annotations

import numpy as np
import pytest

from upslope.labelling.events import fold
from upslope.labelling.queue import BY_STRATEGY, RANDOM, Question, Queue
from upslope.labelling.ranking import Ranking
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import CONTROL, LabelState
from upslope.ledger import Event

IDS = [f"s{i:04d}" for i in range(1000)]
SETTINGS = ProjectSettings("x", ("a", "b"))


def answer(state: LabelState, question: Question, author: str = "me") -> LabelState:
    body = {"labels": {question.id: 0}, "author": author, "slice": question.slice}
    return fold([Event("labelled", 0, body)], state)


def ask_all(queue: Queue, ranking: Ranking | None, count: int) -> list[Question]:
    state, asked = LabelState(), []
    for _ in range(count):
        (question,) = queue.upcoming(state, ranking, "me", 1)
        asked.append(question)
        state = answer(state, question)
    return asked


def test_everything_is_asked_once_and_then_nothing() -> None:
    queue = Queue(IDS, SETTINGS)
    asked = ask_all(queue, Ranking(IDS[:50], "margin"), len(IDS))
    assert sorted(question.id for question in asked) == IDS
    state = LabelState()
    for question in asked:
        state = answer(state, question)
    assert queue.upcoming(state, None, "me", 5) == []
    assert queue.remaining(state, "me") == 0


def test_the_share_of_control_questions_holds_from_the_start() -> None:
    asked = ask_all(Queue(IDS, SETTINGS), Ranking(IDS, "margin"), 500)
    control = np.cumsum([question.slice == CONTROL for question in asked])
    expected = np.floor(0.2 * np.arange(1, 501) + 1e-9)
    assert (control[:400] == expected[:400]).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35])
def test_the_slice_is_a_random_share_of_the_data(share: float) -> None:
    ids = [f"x{i}" for i in range(20_000)]
    queue = Queue(ids, ProjectSettings("x", ("a", "b"), control=share))
    deviation = (20_000 * share * (1 - share)) ** 0.5
    assert abs(len(queue.control) - 20_000 * share) <= 4 * deviation
    numbers = np.array([int(id_[1:]) for id_ in queue.control])
    if share:  # not of one end of the data
        assert abs(numbers.mean() - 10_000) < 4 * 20_000 / (12 * len(numbers)) ** 0.5


def test_control_samples_are_never_asked_for_their_rank() -> None:
    queue = Queue(IDS, SETTINGS)
    ranking = Ranking(queue.control[::-1] + queue.others[:100], "margin")  # what none should do
    asked = ask_all(queue, ranking, 100)
    assert [q.id for q in asked if q.slice == CONTROL] == queue.control[:20]
    assert [q.id for q in asked if q.slice == BY_STRATEGY] == queue.others[:80]
    assert "control slice (20% of the questions)" in next(
        q.why for q in asked if q.slice == CONTROL
    )


def test_samples_that_come_later_change_no_slice() -> None:
    before, after = Queue(IDS[:600], SETTINGS), Queue(IDS, SETTINGS)
    assert [i for i in after.control if i in set(IDS[:600])] == before.control


def test_a_new_ranking_replaces_what_was_not_shown() -> None:
    queue = Queue(IDS, ProjectSettings("x", ("a", "b"), control=0.0))
    first = Ranking(["s0001", "s0002", "s0003"], "margin", {"s0001": 0.75})
    questions = queue.upcoming(LabelState(), first, "me", 4)
    assert [q.id for q in questions[:3]] == ["s0001", "s0002", "s0003"]
    assert questions[0].why == "margin: rank 1, score 0.75"
    assert questions[3].slice == RANDOM  # people were faster than the ranking
    second = Ranking(["s0009", "s0002"], "margin")
    assert [q.id for q in queue.upcoming(LabelState(), second, "me", 2)] == ["s0009", "s0002"]


def test_two_people_never_see_one_sample_at_once() -> None:
    queue = Queue(IDS, SETTINGS)
    (mine,) = queue.upcoming(LabelState(), None, "ann", 1)
    others = queue.upcoming(LabelState(), None, "bob", 200, held_ids={mine.id})
    assert mine.id not in {question.id for question in others}


def test_a_stated_share_is_asked_of_a_second_person_and_of_no_third() -> None:
    queue = Queue(IDS, ProjectSettings("x", ("a", "b"), twice=0.3))
    state = LabelState()
    for question in queue.upcoming(state, None, "ann", len(IDS)):
        state = answer(state, question, "ann")
    second = queue.upcoming(state, None, "bob", len(IDS))
    assert abs(len(second) - 300) < 60
    assert queue.remaining(state, "bob") == len(second)
    for question in second:
        state = answer(state, question, "bob")
    assert queue.upcoming(state, None, "cem", 10) == []


def test_unreadable_and_imported_samples_are_not_asked() -> None:
    imported = {"labels": {"s0001": 1}, "author": "import: x", "slice": "imported"}
    state = fold([Event("labelled", 0, imported), Event("unreadable", 0, {"ids": ["s0002"]})])
    queue = Queue(IDS, SETTINGS)
    asked = {question.id for question in queue.upcoming(state, None, "me", 2000)}
    assert asked == set(IDS) - {"s0001", "s0002"}
    assert queue.remaining(state, "me") == 998


def test_a_sample_to_ask_again_whose_answer_is_taken_back_is_asked_as_others_are() -> None:
    """The queue ended in a KeyError, and the page with it, until the log was repaired by hand."""
    by_me = {"author": "me", "slice": "random"}
    state = fold(
        [
            Event("labelled", 0, {"labels": {"s0001": 0, "s0002": 0}, **by_me}),
            Event("asked_again", 0, {"ids": {"s0001": "look", "s0002": "look"}}),
            Event("taken_back", 0, {"labels": {"s0001": 0}, "passed": {}, "author": "me"}),
        ]
    )
    queue = Queue(IDS, SETTINGS)
    questions = queue.upcoming(state, None, "me", len(IDS))
    assert [(q.id, q.why) for q in questions if q.why == "look"] == [("s0002", "look")]
    assert "s0001" in {question.id for question in questions}
    assert queue.remaining(state, "me") == 999


def test_a_sample_that_is_passed_when_asked_again_is_not_given_as_before() -> None:
    state = fold(
        [
            Event("labelled", 0, {"labels": {"s0001": 0}, "author": "me", "slice": "random"}),
            Event("asked_again", 0, {"ids": {"s0001": "look"}}),
            Event("taken_back", 0, {"labels": {"s0001": 0}, "passed": {}, "author": "me"}),
            Event("passed", 0, {"ids": {"s0001": "skip"}, "author": "me", "slice": "random"}),
        ]
    )
    assert not state.settled
    assert not state.again


def test_many_questions_at_once_are_those_of_one_after_the_other() -> None:
    queue, ranking = Queue(IDS, SETTINGS), Ranking(IDS[::-1], "margin")
    at_once = queue.upcoming(LabelState(), ranking, "me", 300)
    assert at_once == ask_all(queue, ranking, 300)
    assert queue.upcoming(LabelState(), None, "me", 10**6)[:250] == ask_all(queue, None, 250)


def test_as_many_samples_remain_as_are_asked() -> None:
    """With copies, of which some originals cannot be read, and answers of people and files."""
    rng = np.random.default_rng(0)
    kinds = [("ann", "control"), ("bob", "random"), ("import: x", "imported"), ("", "unreadable")]
    for seed in range(60):
        ids = [f"s{i}" for i in range(30)]
        originals = rng.permutation(ids)[:12]
        body = {"ids": dict(zip(originals[:6].tolist(), originals[6:].tolist(), strict=True))}
        events = [Event("copies", 0, body)]
        for id_, kind in zip(rng.permutation(ids)[:20], rng.integers(0, 4, 20), strict=True):
            author, why = kinds[kind]
            label = {"labels": {str(id_): 0}, "author": author, "slice": why}
            unreadable = {"ids": [str(id_)]}
            events.append(
                Event("labelled", 0, label) if author else Event("unreadable", 0, unreadable)
            )
        state = fold(events)
        queue = Queue(ids, ProjectSettings("x", ("a", "b"), twice=0.4, seed=seed))
        for author in ("ann", "bob", "cem"):
            asked = [question.id for question in queue.upcoming(state, None, author, 100)]
            assert len(asked) == len(set(asked)) == queue.remaining(state, author)
        unanswered = [id_ for id_ in queue.control if id_ not in state.answers]
        assert queue.waiting_control(state, 3) == unanswered[:3]
