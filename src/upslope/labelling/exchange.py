"""A project and a tool beside the page: answers come in, the samples worth most go out.

    exchange = Exchange(project, samples, annotator)
    exchange.pull()            # answers of the tool, on the disk when it returns
    exchange.push(50)          # the next 50 tasks, in the order of their worth

Both can be repeated after a kill: neither a task nor an answer is there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from upslope.errors import DataError
from upslope.labelling.advice import advise
from upslope.labelling.annotators.base import AnnotationTask, Annotator, PulledAnswer, PushCount
from upslope.labelling.contents import content_of
from upslope.labelling.copies import find_copies
from upslope.labelling.extraction import take_features
from upslope.labelling.learner import Learner
from upslope.labelling.outline_sizes import size_problem
from upslope.labelling.project import Project, check_author
from upslope.labelling.queue import BY_STRATEGY, Question, Queue
from upslope.labelling.ranking import Ranking
from upslope.labelling.samples import FolderImages, Samples, TableRows
from upslope.labelling.settings import OUTLINES
from upslope.labelling.state import CONTROL, Answer

_MOST_NAMES = 3


@dataclass(frozen=True)
class PullCount:
    """new, changed: answers recorded, of samples without one by that person, and others. same:
    those that were recorded before. strangers: of samples that the project does not have."""

    new: int
    changed: int
    same: int
    strangers: int


class Exchange:
    """Carries tasks and answers between a project and a tool.

    project: open for writing. samples: its samples. predictions: send what the model makes of each
    sample; it sways people, and is left out unless asked for.
    """

    def __init__(
        self, project: Project, samples: Samples, annotator: Annotator, predictions: bool = False
    ) -> None:
        self.project, self.annotator = project, annotator
        self._samples, self._predictions = samples, predictions
        self._queue = Queue(samples.ids, project.settings)
        self._position = {id_: i for i, id_ in enumerate(samples.ids)}
        self._learner: Learner | None = None
        self._copies: dict[str, str] | None = None

    def pull(self) -> PullCount:
        """Record the answers of the tool; all of them are checked before the first is recorded.

        Raises:
            DataError: answers that are none; the message names their samples, and nothing is
                recorded.
            RunError: the tool or the disk fails; the same call goes on.
        """
        answers = self.annotator.pull()
        ours = [answer for answer in answers if answer.id in self._position]
        self._check(ours)
        counts = {"new": 0, "changed": 0, "same": 0}
        for answer in ours:
            before = self.project.state.answers.get(answer.id, {}).get(answer.author)
            events = self.project.state.events
            self._record(answer, before)
            has_new_events = self.project.state.events != events
            counts["same" if not has_new_events else "new" if before is None else "changed"] += 1
        return PullCount(**counts, strangers=len(answers) - len(ours))

    def push(self, count: int) -> PushCount:
        """Hand the next `count` samples to the tool, those worth most first.

        Raises:
            RunError: the tool or the disk fails; the same call goes on.
            DataError: images that cannot be read.
        """
        pushed_ids = set(self.annotator.pushed())
        ranking = self.rank()
        self.project.take_ranking(ranking, self._position)
        questions = self._queue.upcoming(self.project.state, ranking, "", count, pushed_ids)
        return self.annotator.push([self._task(q, i, ranking) for i, q in enumerate(questions, 1)])

    def waiting(self) -> int:
        """Return how many tasks of the tool have no answer yet."""
        return len(set(self.annotator.pushed()) - self.project.state.answers.keys())

    def rank(self) -> Ranking:
        """Train on the answers so far, and return the ranking with its advice."""
        if self._learner is None:
            *_, features = take_features(self.project.folder, self._samples)
            self._copies = find_copies(self._samples)
            self._learner = Learner(
                self.project.settings, self._samples.ids, self._queue, features.values,
                features.method,
            )  # fmt: skip
        state = self.project.state
        advice = advise(self._learner, state)
        ranking = self._learner.rank(state)
        return replace(
            ranking, advice=None if advice is None else advice.record(), copies=self._copies
        )

    def _check(self, answers: Sequence[PulledAnswer]) -> None:
        problems = []
        for answer in answers:
            try:
                check_author(answer.author)
                label = None if answer.answer is None else self.project.label(answer.answer)
            except DataError as error:
                problems.append(f"{answer.id!r} by {answer.author}: {error}")
                continue
            if self.project.settings.kind not in OUTLINES or not isinstance(label, str):
                continue
            # Those that are recorded already were looked at: sizes cost a look into each file.
            before = self.project.state.answers.get(answer.id, {}).get(answer.author)
            if (before is None or before.label != label) and (
                problem := size_problem(self._samples, answer.id, label)
            ):
                problems.append(f"{answer.id!r} by {answer.author}: {problem}")
        if problems:
            more = (
                f" And {len(problems) - _MOST_NAMES} more." if len(problems) > _MOST_NAMES else ""
            )
            raise DataError(
                f"Expected answers of the project's kind in {self.annotator.name} but "
                f"{len(problems)} are not: {' '.join(problems[:_MOST_NAMES])}{more} Mend them "
                "there; "
                "nothing was recorded."
            )

    def _record(self, answer: PulledAnswer, before: Answer | None) -> None:
        """Record an answer; one that stands already says nothing of what its sample is now."""
        label = None if answer.answer is None else self.project.label(answer.answer)
        stands = before is not None and (before.label, before.reason) == (label, answer.reason)
        content = "" if stands else content_of(self._samples, self._position[answer.id])
        slice_ = CONTROL if self._queue.is_control(answer.id) else BY_STRATEGY
        seconds = None if answer.seconds is None else round(answer.seconds, 3)
        note = answer.note
        if answer.answer is None:
            self.project.skip(
                answer.id, answer.reason, author=answer.author, seconds=seconds, note=note,
                slice_=slice_, content=content,
            )  # fmt: skip
        else:
            self.project.answer(
                answer.id, answer.answer, author=answer.author, seconds=seconds, note=note,
                slice_=slice_, guess_shown=self._predictions, content=content,
            )  # fmt: skip

    def _task(self, question: Question, rank: int, ranking: Ranking) -> AnnotationTask:
        samples, position = self._samples, self._position[question.id]
        guess = ranking.guesses.get(question.id) if self._predictions else None
        score = ranking.scores.get(question.id)
        task = AnnotationTask(
            question.id, rank, question.why, samples.kind, score=score, guess=guess
        )
        if isinstance(samples, TableRows):
            return replace(task, cells=samples.content(position))
        picture = samples.picture(position)
        file = samples.file_shown(position) if isinstance(samples, FolderImages) else None
        return replace(task, image=picture.data, media_type=picture.media_type, file=file)
