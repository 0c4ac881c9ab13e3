"""A run whose labels people give, in sittings: each takes their answers in and asks for more.

sitting = sit(experiment, question)        # reads to-label.csv, goes on, writes the next one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from upslope.experiment.answers import AnswerCounts
from upslope.experiment.run import Experiment
from upslope.experiment.sheet import ANEW, Answers, Question, read_sheet, write_sheet
from upslope.ledger import State
from upslope.ledger.status import SHEET
from upslope.tasks.answers import class_answer, class_label
from upslope.tasks.base import TakesAnswers, Task


@dataclass(frozen=True)
class Sitting:
    """What one sitting did.

    counts: answers read from the sheet. own: labels that the data set itself had. waiting: ids
    that people are asked for now. sheet: where. vanished: ids that waited and had no row in the
    sheet; they are written anew. emptied: ids whose rows have no answer any more, though one was
    recorded before, which stands.
    """

    counts: AnswerCounts
    own: int
    waiting: tuple[str, ...]
    sheet: Path
    vanished: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()


def sit(experiment: Experiment, question: Callable[[str, str], Question]) -> Sitting:
    """Record what people answered, go on as far as that allows, and ask for what comes next.

    Labels that the data set itself has are taken from it: masks that were drawn meanwhile too. An
    empty row for a sample that was skipped takes the mask that has been drawn for it since.
    question: makes the line of the sheet for an id and the reason for which it is asked.

    experiment: the run.

    Returns: what was recorded, and what is asked now.

    Raises:
        DataError: a sheet with answers that cannot be taken: nothing of it is recorded.
        UpslopeError: as `Experiment.ask`.
    """
    sheet = experiment.path / SHEET
    answers = Answers()
    vanished_ids: tuple[str, ...] = ()
    emptied_ids: tuple[str, ...] = ()
    if sheet.is_file():
        answers = _read(experiment, sheet, ANEW)
        state = experiment.state
        vanished_ids = tuple(i for i in state.pending if i not in answers.ids)
        mask_labels = experiment.own_labels(i for i in answers.empty if i in state.passed)
        emptied_ids = tuple(i for i in _rows_without_answer(answers, state) if i not in mask_labels)
        answers = replace(answers, labels={**answers.labels, **mask_labels})
    counts = experiment.answer(answers.labels, answers.passed, answers.withdrawn)
    own_count = 0
    while True:
        labels = experiment.own_labels()
        experiment.tell(labels)
        own_count += len(labels)
        waiting = experiment.ask()
        if not experiment.own_labels():
            break
    if waiting and set(waiting) != set(answers.ids):
        why = reasons(experiment)
        write_sheet(sheet, [question(id_, why[id_]) for id_ in waiting])
    if not waiting:  # all that it holds is recorded
        sheet.unlink(missing_ok=True)
    return Sitting(counts, own_count, waiting, sheet, vanished_ids, emptied_ids)


def tell_sheet(experiment: Experiment, path: Path) -> tuple[AnswerCounts, tuple[str, ...]]:
    """Record the answers of a CSV file with the columns id and label, all or none; train nothing.

    Answers that are recorded already change nothing.

    Returns: what was recorded, and the ids whose rows have no answer though one is recorded, which
    stands.

    Raises:
        DataError: a file with answers that cannot be taken, or for samples that were not asked.
    """
    answers = _read(experiment, path)
    emptied_ids = _rows_without_answer(answers, experiment.state)
    counts = experiment.answer(answers.labels, answers.passed, answers.withdrawn)
    return counts, emptied_ids


def _rows_without_answer(answers: Answers, state: State) -> tuple[str, ...]:
    """Return the ids whose rows have no answer though one, or a pass, is recorded."""
    return tuple(i for i in answers.empty if state.labels.get(i) is not None or i in state.passed)


def reasons(experiment: Experiment) -> dict[str, str]:
    """Why each id that waits is asked: which strategy chose it, at which rank and score."""
    state = experiment.state
    if state.cycle == 0:
        start = experiment.settings.start
        name = start if isinstance(start, str) else str(start["name"])
        how = "at random" if name == "random" else name
        reason_of = dict.fromkeys(state.initial, f"initial set, {how}")
    else:
        last = state.cycles[-1]
        reason_of = {
            id_: f"{experiment.strategy.name}, rank {rank} of {len(last.asked)}"
            + (f", score {last.scores[rank - 1]:.4g}" if last.scores else "")
            for rank, id_ in enumerate(last.asked, 1)
        }
    return {id_: reason_of.get(id_, "its answer was taken back") for id_ in state.pending}


def _read(experiment: Experiment, sheet: Path, remedy: str = "") -> Answers:
    """Return the answers of a sheet; what was taken back already is not taken back again."""
    pool, state = experiment.splits.pool, experiment.state
    withdrawn_ids = experiment.ids_withdrawn()
    ids = {*state.pending, *state.labels, *state.passed, *withdrawn_ids}
    read = answer_reader(experiment.task, pool.classes)
    answers = read_sheet(sheet, ids, pool.classes, read, remedy)
    waiting_again = withdrawn_ids - state.labels.keys() - state.passed.keys()
    return replace(answers, withdrawn=tuple(i for i in answers.withdrawn if i not in waiting_again))


def answer_reader(task: Task, classes: Sequence[str]) -> Callable[[str], object]:
    """Return what makes an answer of a cell of a sheet, or raises DataError where it is none."""

    def read(text: str) -> object:
        if isinstance(task, TakesAnswers):
            answer = task.read_answer(text, classes)
            task.label(answer, classes)  # raises DataError where it is no label
        else:
            answer = class_answer(text, classes)
            class_label(answer, classes)
        return answer

    return read
