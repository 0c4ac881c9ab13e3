"""Which sample is asked next: a random control slice among those that a ranking puts first.

**The control slice** measures the model. A sample belongs to it by a number drawn from its id and
the seed, so that it is a random sample of the data whatever a strategy prefers; it is asked at
random, and no model is trained on it. The share of control samples among those asked is the share
of control samples in the data.

**Everything else** is asked in the order of the last ranking, and at random where there is none
yet, or where people were faster than the ranking: the queue is empty only when all is answered.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from upslope.labelling.ranking import Ranking
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import BY_IMPORT, CONTROL, LabelState, slice_of

RANDOM = "random"
BY_STRATEGY = "strategy"
_SECOND_PERSON = "a second person's answer is wanted"
_NO_RANK = "at random, as no ranking reaches this far yet"


@dataclass(frozen=True)
class Question:
    """A sample to ask. slice: "control", "random" or "strategy". why: a sentence for people.
    rank: its place in the ranking, from 1; 0 where it has none."""

    id: str
    slice: str
    why: str
    rank: int = 0


def draw(seed: int, purpose: str, id_: str) -> float:
    """Return a number in [0, 1) that depends on the seed, the purpose and the id alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{id_}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


class Queue:
    """The order of questions of a project.

    ids: of all samples. Samples may be added between two openings: who belongs to the control
    slice does not change by it.
    """

    def __init__(self, ids: Sequence[str], settings: ProjectSettings) -> None:
        self._settings = settings
        seed = settings.seed
        by_chance = sorted(ids, key=lambda id_: (draw(seed, "order", id_), id_))
        share = settings.control
        self.control = [id_ for id_ in by_chance if draw(seed, "control", id_) < share]
        self._all, self._control_ids = set(ids), set(self.control)
        self.others = [id_ for id_ in by_chance if id_ not in self._control_ids]
        self._twice = {id_ for id_ in ids if draw(seed, "twice", id_) < settings.twice}

    def upcoming(
        self,
        state: LabelState,
        ranking: Ranking | None,
        author: str,
        count: int,
        held_ids: Collection[str] = (),
    ) -> list[Question]:
        """Return the next questions for a person, `count` or fewer.

        ranking: the last one, None before the first. held_ids: samples that others look at now.
        """

        def may_ask(id_: str) -> bool:
            return id_ not in held_ids and self._is_open(state, id_, author)

        # One whose answer was taken back is asked as others are.
        again = (
            id_
            for id_ in state.again
            if id_ in state.answers and id_ in self._all and id_ not in held_ids
        )
        waiting = (
            id_
            for id_ in (state.answers if self._twice else ())
            if id_ in self._twice and id_ not in state.again and may_ask(id_)
        )
        repeats = chain(
            (Question(id_, slice_of(state.answers[id_]), state.again[id_]) for id_ in again),
            (Question(id_, slice_of(state.answers[id_]), _SECOND_PERSON) for id_ in waiting),
        )
        questions = list(islice(repeats, count))
        ids = {question.id for question in questions}
        new = self._new(state, ranking, lambda id_: id_ not in ids and may_ask(id_))
        return questions + list(islice(new, count - len(questions)))

    def _new(
        self, state: LabelState, ranking: Ranking | None, may_ask: Callable[[str], bool]
    ) -> Iterator[Question]:
        """Samples that nobody has answered: of the control slice when its share is due, else by
        rank, and at random where no rank is left."""
        new_ids: set[str] = set()

        def fresh(questions: Iterable[Question]) -> Iterator[Question]:
            return (q for q in questions if q.id not in new_ids and may_ask(q.id))

        control = fresh(map(self._control_question, self.control))
        by_chance = (Question(id_, RANDOM, _NO_RANK) for id_ in self.others)
        others = fresh(chain(self._by_rank(ranking), by_chance))
        asked_control, asked_count = self._count_asked(state)
        while True:
            is_due = math.floor((asked_count + 1) * self._settings.control) > asked_control
            question = next(control if is_due else others, None)
            question = question or next(others if is_due else control, None)
            if question is None:
                return
            new_ids.add(question.id)
            yield question
            asked_control += question.slice == CONTROL
            asked_count += 1

    def _by_rank(self, ranking: Ranking | None) -> Iterator[Question]:
        """The samples of a ranking outside the control slice, the first rank first."""
        if ranking is None:
            return
        for place, id_ in enumerate(ranking.ids, 1):
            if id_ not in self._control_ids:
                yield Question(id_, BY_STRATEGY, _why_by_rank(ranking, id_, place), place)

    def remaining(self, state: LabelState, author: str) -> int:
        """Return how many samples a person may still be asked."""
        answer_count = sum(map(self._all.__contains__, state.answers))
        unreadable = sum(id_ not in state.answers for id_ in state.unreadable & self._all)
        unreadable += sum(
            id_ in self._all and id_ not in state.answers and id_ not in state.unreadable
            and of not in state.unreadable for id_, of in state.copies.items()
        )  # fmt: skip
        again = 0
        if self._twice:
            twice = (id_ for id_ in state.answers if id_ in self._twice)
            again = sum(self._is_open(state, id_, author) for id_ in twice)
        return len(self._all) - answer_count - unreadable + again

    def is_control(self, id_: str) -> bool:
        """Tell whether a sample belongs to the control slice."""
        return id_ in self._control_ids

    def waiting_control(self, state: LabelState, count: int) -> list[str]:
        """Return the next samples of the control slice that nobody has answered."""
        open_ids = (id_ for id_ in self.control if id_ not in state.answers)
        return list(islice(open_ids, count))

    def _is_open(self, state: LabelState, id_: str, author: str) -> bool:
        answers = state.answers.get(id_)
        if id_ in state.unreadable:
            return False
        if id_ in state.copies and not answers and state.copies[id_] not in state.unreadable:
            return False
        if not answers:
            return True
        people_needed = 2 if id_ in self._twice else 1
        is_imported = any(answer.is_imported for answer in answers.values())
        return not is_imported and author not in answers and len(answers) < people_needed

    def _count_asked(self, state: LabelState) -> tuple[int, int]:
        """(samples of the control slice, all samples) that were asked and answered."""
        slices = state.tally.slices
        return slices[CONTROL], slices.total() - slices[BY_IMPORT]

    def _control_question(self, id_: str) -> Question:
        share = f"{100 * self._settings.control:.0f}%"
        why = f"at random, for the control slice ({share} of the questions): it measures the model"
        return Question(id_, CONTROL, why)


def _why_by_rank(ranking: Ranking, id_: str, place: int) -> str:
    score = ranking.scores.get(id_)
    return f"{ranking.method}: rank {place}" + ("" if score is None else f", score {score:.3g}")
