"""The events of a labelling project, and how they add up to its state.

labelled    {"labels": {id: label}, "author", "seconds", "note", "slice", "guess_shown"};
            without "seconds" where it is not known how long the answer took; with "content", or
            "contents": {id: content}, where it is known what the answer was of (`contents`)
corrected   the same, with "before": {id: label}: another answer of the same author
passed      {"ids": {id: "skip" or "cannot tell"}, "author", ...}: no label, and not asked again
taken_back  {"labels": {id: label}, "passed": {id: reason}, "author"}: an answer undone
measured    {"labels", "correct", "of"}: what a model got right of the control answers; with
            "advice" where there is new advice (`advice`)
asked_again {"ids": {id: why}}: samples to be answered once more, by whoever comes next
confirmed   {"ids": [id], "author", "content"}: asked again, or replaced, and answered as before
moved       {"data": place}: where the data lie from here on
closed      {}: control answers are trained on from here on
copies      {"ids": {id: id}}: samples that are copies of another, and are not asked beside it
unreadable  {"ids", "readable"}: samples whose content cannot be read, and which are not asked; and
            those that can be read again, which earlier versions did not record
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from upslope.labelling.state import Answer, AnswerLabel, LabelState, Measurement, merge
from upslope.ledger import Event


def fold(events: Iterable[Event], state: LabelState | None = None) -> LabelState:
    """Return the state after `events`. state: the one before them, which stays as it is.

    Raises:
        ValueError: an event that cannot follow those before it.
    """
    growing = _GrowingState(state or LabelState())
    for event in events:
        growing.add(event)
    return growing.state()


class _GrowingState:
    """A state that takes in events one by one: a method for each kind."""

    def __init__(self, state: LabelState) -> None:
        self._answers = dict(state.answers)
        self._unreadable = set(state.unreadable)
        self._measurements = list(state.measurements)
        self._is_closed = state.closed
        self._again, self._copies = dict(state.again), dict(state.copies)
        self._count = state.events
        self._tally = state.tally.copy()
        self._data = state.data
        self._settled_ids = set(state.settled)
        self._contents = dict(state.contents)

    def state(self) -> LabelState:
        return LabelState(
            self._answers, frozenset(self._unreadable), tuple(self._measurements),
            self._is_closed, self._again, self._copies, self._count, self._tally, self._data,
            frozenset(self._settled_ids), self._contents,
        )  # fmt: skip

    def add(self, event: Event) -> None:
        """Take in an event.

        Raises:
            ValueError: it cannot follow those before it.
        """
        takers = {
            "labelled": self._label,
            "corrected": self._correct,
            "passed": self._pass_over,
            "taken_back": self._take_back,
            "measured": self._measure,
            "asked_again": self._ask_again,
            "confirmed": self._confirm,
            "moved": self._move,
            "closed": self._close,
            "copies": self._note_copies,
            "unreadable": self._note_unreadable,
        }
        if event.kind not in takers:
            raise ValueError(f"an event of unknown kind {event.kind!r}")
        takers[event.kind](event.body)
        self._note_contents(event.body)
        self._count += 1

    def _label(self, body: Mapping[str, Any]) -> None:
        for id_, label in body["labels"].items():
            if self._answer_of(id_, body["author"]) is not None:
                raise ValueError(f"{id_!r} labelled, which has an answer")
            self._put(id_, body["author"], _answer(id_, label, "", body, self._count))

    def _correct(self, body: Mapping[str, Any]) -> None:
        for id_, label in body["labels"].items():
            before = self._answer_of(id_, body["author"])
            if before is None:
                raise ValueError(f"{id_!r} corrected, which has no answer")
            answer = _answer(id_, label, "", body, self._count)
            self._put(id_, body["author"], replace(answer, first=before.first))

    def _pass_over(self, body: Mapping[str, Any]) -> None:
        for id_, reason in body["ids"].items():
            if self._answer_of(id_, body["author"]) is not None:
                raise ValueError(f"{id_!r} passed, which has an answer")
            self._put(id_, body["author"], _answer(id_, None, reason, body, self._count))

    def _take_back(self, body: Mapping[str, Any]) -> None:
        for id_ in (*body["labels"], *body["passed"]):
            if self._answer_of(id_, body["author"]) is None:
                raise ValueError(f"an answer of {id_!r} taken back that there is none of")
            self._put(id_, body["author"], None)

    def _note_contents(self, body: Mapping[str, Any]) -> None:
        """Note what an answer was of, where the event says so."""
        self._contents.update(body.get("contents", {}))
        if content := body.get("content"):
            ids = body.get("labels") or body.get("ids") or ()
            self._contents.update(dict.fromkeys(ids, content))

    def _measure(self, body: Mapping[str, Any]) -> None:
        self._measurements.append(
            Measurement(body["labels"], body["correct"], body["of"], body.get("advice"))
        )

    def _ask_again(self, body: Mapping[str, Any]) -> None:
        self._again.update(body["ids"])

    def _confirm(self, body: Mapping[str, Any]) -> None:
        for id_ in body["ids"]:
            was_asked_again = self._again.pop(id_, None) is not None
            if was_asked_again and merge(self._answers.get(id_, {})) is not None:
                self._settled_ids.add(id_)

    def _move(self, body: Mapping[str, Any]) -> None:
        self._data = body["data"]

    def _close(self, _: Mapping[str, Any]) -> None:
        self._is_closed = True

    def _note_copies(self, body: Mapping[str, Any]) -> None:
        self._copies = dict(body["ids"])

    def _note_unreadable(self, body: Mapping[str, Any]) -> None:
        self._unreadable.update(body["ids"])
        self._unreadable.difference_update(body.get("readable", ()))

    def _answer_of(self, id_: str, author: str) -> Answer | None:
        return self._answers.get(id_, {}).get(author)

    def _put(self, id_: str, author: str, answer: Answer | None) -> None:
        """Let a person's answer of a sample be this one, or none; all that hangs on it follows."""
        before = self._answers.get(id_, {})
        after = {name: one for name, one in before.items() if name != author}
        ids = self._tally.by_author.setdefault(author, {})
        ids.pop(id_, None)
        is_second_look = False
        if answer is not None:
            after[author] = answer
            ids[id_] = None
            if not answer.is_imported:  # a file has looked at nothing
                is_second_look = self._again.pop(id_, None) is not None
        label = merge(after)
        if merge(before) != label:
            self._settled_ids.discard(id_)
        elif is_second_look and label is not None and answer is not None and answer.label == label:
            self._settled_ids.add(id_)
        self._tally.count(before, -1)
        self._tally.count(after, 1)
        if after:
            self._answers[id_] = after
        else:
            del self._answers[id_]
            self._contents.pop(id_, None)


def _answer(
    id_: str, label: AnswerLabel | None, reason: str, body: Mapping[str, Any], order: int
) -> Answer:
    return Answer(
        id_,
        body["author"],
        label,
        reason,
        body.get("seconds") or None,  # earlier versions recorded 0 where no time was known
        body.get("note", ""),
        body.get("slice", ""),
        body.get("guess_shown", False),
        order,
        order,
    )
