"""Several people's answers for one sample: where they disagree, and what they come to.

`merge_answers` merges by majority, or by Dawid and Skene (Applied Statistics 28, 1979): each person
has a table of how often a class is called which, estimated with the labels themselves by
expectation maximisation (crowd-kit, extra `people`), so that those who err much count for less.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from upslope.errors import ConfigError
from upslope.extras import missing_package
from upslope.labelling.project import names_of
from upslope.labelling.state import AnswerLabel, LabelState, answers_that_count, merge

MergeMethod = Literal["majority", "dawid-skene"]
_ITERATIONS = 100


@dataclass(frozen=True)
class Disagreement:
    """A sample on which people disagree, or imports that no person has looked at.

    answers: author -> what they said, in words. is_imported: imports disagree.
    """

    id: str
    answers: dict[str, str]
    is_imported: bool = False

    @property
    def words(self) -> str:
        """Return who said what, as a reason to ask again."""
        said = ", ".join(f"{author}: {answer}" for author, answer in self.answers.items())
        return f"{'imports' if self.is_imported else 'people'} disagree ({said})"


def disagreements(state: LabelState, classes: Sequence[str]) -> list[Disagreement]:
    """Return the samples whose answers that count differ, where no majority has been found.

    A sample is settled once more than half of these are one: a third answer, for one; of imports
    that contradict each other, once a person has answered.
    """
    disputes = []
    for id_, by_author in state.answers.items():
        if len(by_author) < 2:
            continue
        answers = answers_that_count(by_author)
        texts = [repr(answer.label) for answer in answers]
        if len(set(texts)) > 1 and 2 * max(map(texts.count, texts)) <= len(texts):
            words = {
                answer.author: _words(names_of(answer.label, classes))
                for answer in answers
                if answer.label is not None
            }
            disputes.append(Disagreement(id_, words, answers[0].is_imported))
    return disputes


def merge_answers(
    state: LabelState, classes: Sequence[str], method: MergeMethod = "majority"
) -> dict[str, AnswerLabel]:
    """Return id -> the label that all answers of a sample come to, in the order of the answers.

    Raises:
        ConfigError: an unknown method; Dawid and Skene's without crowd-kit.
    """
    if method not in get_args(MergeMethod):
        raise ConfigError(
            f"Expected --merge to be one of {', '.join(get_args(MergeMethod))} but got {method!r}."
        )
    labels = {}
    for id_, by_author in state.answers.items():
        label = merge(by_author)
        if label is not None:
            labels[id_] = label
    if method == "majority":
        return labels
    return labels | _dawid_skene(state, classes)


def _dawid_skene(state: LabelState, classes: Sequence[str]) -> dict[str, AnswerLabel]:
    """The labels of all samples with one; of sets, each label by itself."""
    if importlib.util.find_spec("crowdkit") is None:
        raise missing_package(
            "crowd-kit", "to merge by Dawid and Skene", "people", "--merge majority"
        )
    answers = [
        (answer.id, answer.author, answer.label)
        for by_author in state.answers.values()
        for answer in answers_that_count(by_author)
        if answer.label is not None
    ]
    if not answers:
        return {}
    if any(isinstance(label, str) for _, _, label in answers):
        raise ConfigError(
            "Expected classes or sets of labels to merge by Dawid and Skene but this project has "
            "outlines. Take --merge majority."
        )
    if isinstance(answers[0][2], int):
        return {id_: int(k) for id_, k in _estimate(answers).items()}
    columns = [
        _estimate([(id_, author, label[k]) for id_, author, label in answers])  # type: ignore[index]
        for k in range(len(classes))
    ]
    return {id_: [int(column[id_]) for column in columns] for id_ in columns[0]}


def _estimate(answers: Sequence[tuple[str, str, object]]) -> dict[str, int]:
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    frame = pd.DataFrame(answers, columns=["task", "worker", "label"])
    with warnings.catch_warnings():
        # crowd-kit calls pandas in ways that newer versions of pandas warn of.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        estimates = DawidSkene(n_iter=_ITERATIONS).fit_predict(frame)
    return {str(task): int(label) for task, label in estimates.items()}


def _words(names: object) -> str:
    if isinstance(names, list):
        return ", ".join(names) or "none"
    return str(names)
