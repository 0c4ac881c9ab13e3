"""The state behind the labelling page, without HTTP: questions, answers, progress, accuracy."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from upslope.errors import DataError, RunError
from upslope.evaluation import wilson_interval
from upslope.files import disk_errors
from upslope.labelling.advice import Advice
from upslope.labelling.contents import content_of
from upslope.labelling.people import disagreements
from upslope.labelling.project import Project, names_of
from upslope.labelling.queue import BY_STRATEGY, RANDOM, Question, Queue
from upslope.labelling.ranking import Guess, Ranking
from upslope.labelling.samples import Samples, TableRows
from upslope.labelling.stale_pages import refuse_stale
from upslope.labelling.state import CONTROL, Answer, merge, slice_of
from upslope.labelling.status import advice_lines

AHEAD = 6
"""Questions that the page gets at once, so that their images are there before they are shown."""
QUESTIONS_FILE = "shown.json"
"""The file in which a server keeps what each person looks at."""
_HISTORY = 12
_HELD_SECONDS = 600.0  # that a sample shown to one person is not shown to another
_ONE_ANSWER = (
    "Expected one of `label`, a name, `labels`, names, and `reason` in an answer, and no other."
)
_NOTE, _SECONDS = 2000, 86_400.0  # longest note in characters; longest time in seconds


class Session:
    """A project while it is served. Answers are on the disk when a method returns.

    wage: for an hour of labelling, by which the page says what labels cost; None for no money.
    """

    def __init__(self, project: Project, samples: Samples, wage: float | None = None) -> None:
        self.project, self.samples, self._wage = project, samples, wage
        self.queue = Queue(samples.ids, project.settings)
        self.ranking: Ranking | None = None
        self._position = {id_: i for i, id_ in enumerate(samples.ids)}
        self._id_of_key = {sample_key(id_): id_ for id_ in samples.ids}
        self._opening = secrets.token_hex(4)
        self._first: dict[str, list[Question]] = {}  # author -> asked before the queue
        self._questions_open: dict[
            str, tuple[Question, float]
        ] = {}  # author -> (what is shown, when, in seconds since 1970)
        self._guesses: dict[str, Guess] = {}
        self._restore()

    def take_ranking(self, ranking: Ranking) -> None:
        """Use a new ranking from here on, and record what it measured."""
        self.ranking = ranking
        # What people look at may be in no later ranking, and keeps the guess of the one before.
        shown_ids = {q.id for questions in self._first.values() for q in questions}
        before = {id_: guess for id_, guess in self._guesses.items() if id_ in shown_ids}
        self._guesses = {**before, **ranking.guesses}
        self.project.take_ranking(ranking, self._position)

    def describe(self, author: str) -> dict[str, Any]:
        """Return what does not change while the page is open."""
        settings = self.project.settings
        return {
            "name": self.project.folder.resolve().name,
            "data": settings.data,
            "author": author,
            "classes": list(settings.classes),
            "kind": settings.kind,
            "sample_kind": self.samples.kind,
            "strategy": settings.strategy,
            "control": settings.control,
            "notes": list(self.samples.notes),
            "opening": self._opening,
        }

    def status(self, author: str) -> dict[str, Any]:
        """Return the next questions, and how far things are."""
        questions = self._questions(author)
        if questions:
            before = self._questions_open.get(author)
            self._questions_open[author] = (questions[0], time.time())
            if before is None or before[0].id != questions[0].id:
                with suppress(RunError):  # without room for it, answers fail, and tell
                    self._keep()
        return {
            "questions": [self._question(question, author) for question in questions],
            "progress": self._progress(author),
            "model": self._model(),
            "history": self._history(author),
        }

    def answer(self, author: str, body: Mapping[str, Any]) -> None:
        """Record what a person said of a sample.

        body: `sample`, its key; `label` (a name), `labels` (names) or `reason`; `seconds`,
        `note`, `guess_shown`; `corrects`, the order of the answer that the page showed, None for
        none: without it, whatever there is is corrected.

        Raises:
            DataError: no such sample, an answer that is none, or one that a page sent that did not
                show the answer there is.
            RunError: the disk is full.
        """
        id_ = self.id_of(body.get("sample"))
        if sum(key in body for key in ("label", "labels", "reason")) != 1:
            raise DataError(_ONE_ANSWER)
        question = next((q for q in self._first.get(author, ()) if q.id == id_), None)
        details: dict[str, Any] = {
            "author": author,
            "seconds": _seconds(body.get("seconds")),
            "note": _note(body.get("note", "")),
            "slice_": self._slice(id_, question),
            "why": question.why if question else "",
            "guess_shown": body.get("guess_shown") is True,
            "content": content_of(self.samples, self._position[id_]),
        }
        reason, names = str(body.get("reason", "")), None if "reason" in body else _names(body)
        if "corrects" in body:
            label = None if names is None else self.project.label(names)
            before = self.project.state.answers.get(id_, {}).get(author)
            classes = self.project.settings.classes
            refuse_stale(before, body["corrects"], (label, reason, details["note"]), classes)
        if names is None:
            self.project.skip(id_, reason, **details)
        else:
            self.project.answer(id_, names, **details)
        self.leave(author, id_)

    def undo(self, author: str, sample: object = None) -> bool:
        """Take an answer of a person back, and ask that sample next; say whether there was one.

        sample: the key of the sample whose answer it is, so that a request that comes twice takes
        back one answer; None for the newest.

        Raises:
            DataError: no such sample.
        """
        answer = self.project.undo(author, None if sample is None else self.id_of(sample))
        if answer is None:
            return False
        if answer.id in self._position:  # a file may have gone since
            why = "its answer was taken back"
            self._ask_first(author, Question(answer.id, answer.slice, why))
        return True

    def review(self, author: str, sample: object) -> None:
        """Ask a sample that a person has answered once more. Raises DataError."""
        id_ = self.id_of(sample)
        answers = self.project.state.answers.get(id_)
        if answers is None or author not in answers:
            raise DataError(f"Expected a sample with an answer of {author} but got {id_!r}.")
        self._ask_first(author, Question(id_, slice_of(answers), "to look at its answer again"))

    def ask_doubtful(self) -> int:
        """Have samples answered again whose label the model doubts; return how many are new."""
        return self.project.ask_again(self._doubtful())

    def _doubtful(self) -> dict[str, str]:
        """Doubts of the last ranking, but for those that were settled since."""
        doubtful = self.ranking.doubtful if self.ranking else {}
        state = self.project.state
        return {
            id_: why
            for id_, why in doubtful.items()
            if id_ in state.answers and id_ not in state.settled
        }

    def ask_disagreements(self) -> int:
        """Have samples answered again on which people disagree; return how many are new."""
        reasons = {
            one.id: one.words
            for one in disagreements(self.project.state, self.project.settings.classes)
            if one.id in self._position
        }
        return self.project.ask_again(reasons)

    def leave(self, author: str, id_: str) -> None:
        """Go on from a sample, answered or not."""
        self._first[author] = [q for q in self._first.get(author, ()) if q.id != id_]
        self._questions_open.pop(author, None)

    def guess(self, sample: object) -> dict[str, Any] | None:
        """Return what the model makes of a sample; None where it has no guess. Raises DataError."""
        id_ = self.id_of(sample)
        guess = self._guesses.get(id_)
        if guess is None:
            return None
        nearest = None
        if guess.nearest is not None and guess.nearest in self.project.state.answers:
            label = merge(self.project.state.answers[guess.nearest])
            if label is not None:
                nearest = {
                    **self._content(guess.nearest),
                    "label": names_of(label, self.project.settings.classes),
                }
        return {"classes": [[name, p] for name, p in guess.classes], "nearest": nearest}

    def _questions(self, author: str) -> list[Question]:
        state = self.project.state
        now = time.time()
        held_ids = {
            question.id
            for other, (question, since) in self._questions_open.items()
            # A clock that was set back would hold a sample until it is where it was.
            if other != author and 0 <= now - since < _HELD_SECONDS
        }
        first = self._first.get(author, [])
        following = self.queue.upcoming(
            state, self.ranking, author, AHEAD, {*held_ids, *(question.id for question in first)}
        )
        if not first and following:
            # What is shown stays, also when a new ranking comes or the page is loaded again.
            first = [following.pop(0)]
            self._first[author] = first
        return [*first, *following][:AHEAD]

    def _keep(self) -> None:
        """Write down what people look at, so that a server that was killed goes on with it.

        Not forced to the disk, as answers are: after a power cut somebody may be shown what
        another person has before them, and both answers count.
        """
        path = self.project.folder / QUESTIONS_FILE
        temporary = path.with_name(f".{QUESTIONS_FILE}")
        with disk_errors(path):
            temporary.touch(mode=0o600)
            record = {a: [asdict(q), when] for a, (q, when) in self._questions_open.items()}
            temporary.write_text(json.dumps(record), encoding="utf-8")
            temporary.replace(path)

    def _restore(self) -> None:
        try:
            text = (self.project.folder / QUESTIONS_FILE).read_text(encoding="utf-8")
            questions_by_author = {
                str(author): (Question(**fields), float(when))
                for author, (fields, when) in json.loads(text).items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return  # none, of an earlier version or torn by a power cut: questions come anew
        for author, (question, when) in questions_by_author.items():
            has_answer = author in self.project.state.answers.get(question.id, {})
            if question.id in self._position and not has_answer:
                self._questions_open[author] = (question, when)
                self._first[author] = [question]

    def _ask_first(self, author: str, question: Question) -> None:
        others = [q for q in self._first.get(author, []) if q.id != question.id]
        answers = self.project.state.answers
        # A question that was shown and not answered goes back to the queue; it comes soon enough.
        self._first[author] = [question, *(q for q in others if author in answers.get(q.id, {}))]

    def _slice(self, id_: str, question: Question | None) -> str:
        """Why a sample is asked: as it was when it was shown, whatever was ranked since."""
        if question is not None and question.slice in (CONTROL, BY_STRATEGY, RANDOM):
            return question.slice
        if self.queue.is_control(id_):
            return CONTROL
        return BY_STRATEGY if self.ranking is not None and id_ in self.ranking.ids else RANDOM

    def _question(self, question: Question, author: str) -> dict[str, Any]:
        state = self.project.state
        before, again = state.answers.get(question.id, {}).get(author), question.id in state.again
        return {
            **self._content(question.id),
            "why": question.why,
            "slice": question.slice,
            # What is asked again is answered blind, or the first answer would be repeated.
            "answer": None if before is None or again else self._answer(before),
            "corrects": None if before is None else before.order,
            "has_guess": question.id in self._guesses,
        }

    def _content(self, id_: str) -> dict[str, Any]:
        content: dict[str, Any] = {"sample": sample_key(id_), "id": id_}
        if isinstance(self.samples, TableRows):
            cells = self.samples.content(self._position[id_])
            content["cells"] = [[k, v] for k, v in cells.items()]
        return content

    def _answer(self, answer: Answer) -> dict[str, Any]:
        classes = self.project.settings.classes
        label = None if answer.label is None else names_of(answer.label, classes)
        return {"label": label, "reason": answer.reason, "note": answer.note}

    def _history(self, author: str) -> list[dict[str, Any]]:
        newest = self.project.state.newest_of(author, _HISTORY)
        return [
            {**self._content(a.id), **self._answer(a)} for a in newest if a.id in self._position
        ]

    def _progress(self, author: str) -> dict[str, Any]:
        state, classes = self.project.state, self.project.settings.classes
        tally = state.tally
        return {
            "samples": len(self.samples.ids),
            "labelled": tally.labelled,
            "passed": tally.passed,
            "imported": tally.imported,
            "own": len(tally.by_author.get(author, ())),
            "unreadable": len(state.unreadable),
            "copies": len(state.copies),
            "remaining": self.queue.remaining(state, author),
            "classes": {name: tally.labels[k] for k, name in enumerate(classes)},
        }

    def _model(self) -> dict[str, Any]:
        state, ranking = self.project.state, self.ranking
        model: dict[str, Any] = {
            "cold_start": self.project.settings.cold_start,
            "closed": state.closed,
            "ready": ranking is not None,
            "features": ranking.features if ranking else "",
            "method": ranking.method if ranking else "",
            "labels": ranking.labels if ranking else 0,
            "accuracy": None,
            "curve": [[m.labels, m.correct / m.of] for m in state.measurements],
            "advice": advice_lines(state, self.project.settings, self._wage),
            "doubtful": self._count_new(self._doubtful()),
            "disagreements": self._count_new(
                one.id for one in disagreements(state, self.project.settings.classes)
            ),
            "hardly_pays": bool(state.advice and Advice.from_record(state.advice).hardly_pays),
        }
        if ranking is not None and ranking.of:
            p = wilson_interval(ranking.correct, ranking.of)
            model["accuracy"] = {
                "value": p.value,
                "low": p.low,
                "high": p.high,
                "of": p.trials,
                "method": p.method,
                "confidence": p.confidence,
            }
        return model

    def _count_new(self, ids: Iterable[str]) -> int:
        """How many samples of the project could be asked again, and are not yet."""
        state = self.project.state
        return sum(
            id_ in self._position and id_ in state.answers and id_ not in state.again for id_ in ids
        )

    def id_of(self, sample: object) -> str:
        """Return the id of a sample, given its key. Raises DataError."""
        id_ = self._id_of_key.get(sample) if isinstance(sample, str) else None
        if id_ is None:
            raise DataError(
                f"Expected the key of a sample of the project but got {sample!r}. If its file is "
                "gone, load the page again."
            )
        return id_

    def position_of(self, sample: object) -> int:
        """Return the position of a sample, given its key. Raises DataError."""
        return self._position[self.id_of(sample)]


def sample_key(id_: str) -> str:
    """Return the text by which pages name a sample in requests.

    It depends on the id alone: a page that was open while the project was closed and opened with
    more samples or fewer still means the same sample, which a position would not.
    """
    return hashlib.sha256(id_.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _names(body: Mapping[str, Any]) -> str | list[str]:
    label, labels = body.get("label"), body.get("labels")
    if isinstance(label, str):
        return label
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        return labels
    raise DataError(_ONE_ANSWER)


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0:
        return round(float(min(max(value, 0), _SECONDS)), 3)  # finite, and perhaps beyond a float
    raise DataError(f"Expected `seconds` to be a number but got {value!r}.")


def _note(value: object) -> str:
    if isinstance(value, str) and len(value) <= _NOTE:
        return value.strip()
    raise DataError(f"Expected a note of {_NOTE} characters at most.")
