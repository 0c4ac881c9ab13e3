"""The model of a labelling project, and the ranking that it gives.

The model is a linear layer on features that stay as they are: logistic regression, fitted anew on
every label in well under a second for some hundreds. With few labels yet, samples are ranked by
coverage (TypiClust, which needs no label); from then on by the strategy of the project, which sees
the linear layer as any other network.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope import strategies, tasks
from upslope.datasets.arrays import UNKNOWN, ArrayDataset
from upslope.errors import ConfigError
from upslope.experiment.checks import check_fit, scores_of
from upslope.experiment.selection import Selector
from upslope.experiment.settings import ExperimentSettings
from upslope.labelling.features import Floats
from upslope.labelling.queue import Queue
from upslope.labelling.ranking import Guess, Ranking
from upslope.labelling.settings import OUTLINES, AnswerKind, ProjectSettings
from upslope.labelling.state import AnswerLabel, LabelState
from upslope.pool import Strategy
from upslope.progress import Stop, no_progress
from upslope.scoring import LabelledSet
from upslope.tasks.base import Task
from upslope.training import trains_along

STRENGTH = 0.1
"""`C` of the logistic regression on standardised features. On the features of 2,062 photographs of
hands, with 20 to 500 random labels, 0.1 and 1 are within a point of each other, 0.01 is below."""
COLD_START = "typiclust"
_FEWEST = 20  # samples that the cold start ranks at least, as some may be passed
_CANDIDATES = 10_000  # scored at most, drawn at random: a ranking must not take long
_BATCH = 50  # chosen as one batch; what follows is ordered by score alone
_MOST_RANKS, _CONTROL_AHEAD, _GUESSES = 200, 30, 3
_UNSEEN = -30.0  # logit of a class without a label


def check_strategy(settings: ProjectSettings) -> None:
    """Tell, before anybody labels, a strategy that a linear layer on features cannot serve.

    Raises:
        ConfigError: an unknown strategy, or one with a network of its own to train.
        UpslopeError: what the strategy itself says.
    """
    strategy = strategies.build(settings.strategy)
    if trains_along(strategy):
        raise ConfigError(
            f"Expected a strategy that reads a linear layer on features but {settings.strategy} "
            "trains a network of its own. Take margin, badge or another: `upslope list`."
        )
    if strategy.sees_labels:
        raise ConfigError(
            f"Expected a strategy that people can be asked by but {settings.strategy} looks at the "
            "true labels. It is for simulations. Take margin or another: `upslope list`."
        )
    task = _task(settings)
    check_fit(strategy, nn.Linear(4, _count_outputs(settings)), task, torch.randn(2, 4))


@dataclass
class Learner:
    """Ranks samples. ids: of all samples. features: (n, d), standardised, NaN rows where a sample
    cannot be read. method: what the features are."""

    settings: ProjectSettings
    ids: Sequence[str]
    queue: Queue
    features: Floats
    method: str

    def __post_init__(self) -> None:
        self._position = {id_: i for i, id_ in enumerate(self.ids)}
        self._readable = [bool(row.all()) for row in np.isfinite(self.features)]
        self._task = _task(self.settings)
        self._pool = ArrayDataset(
            "samples",
            self.ids,
            self.settings.classes,
            np.nan_to_num(self.features),
            np.full(len(self.ids), UNKNOWN, dtype=np.int64),
        )
        self._cold: Ranking | None = None

    def rank(self, state: LabelState) -> Ranking:
        """Return what should be asked next, given the answers so far."""
        start_time = time.monotonic()
        labels = state.labels(control=False)
        control = state.labels(control=True)
        if state.closed:
            labels, control = {**labels, **control}, {}
        labels = self.usable(labels)
        if self.settings.kind in OUTLINES:  # what is drawn is not learnt here: coverage alone
            labels, control = dict.fromkeys(labels, 0), {}
        candidates = self._candidates(state)
        trainable = len({_key(label) for label in labels.values()}) > 1
        model = self._fit(labels) if trainable else None
        if model is None or len(labels) < self.settings.cold_start:
            ranking = self._cover(labels, candidates)
        else:
            ranking = self._by_strategy(model, labels, candidates)
        ranking = replace(
            ranking,
            features=self.method,
            unreadable=[id_ for id_ in self.ids if not self._readable[self._position[id_]]],
        )
        if model is not None:
            ahead = self.queue.waiting_control(state, _CONTROL_AHEAD)
            right = [self._predict(model, id_) == label for id_, label in
                     self.usable(control).items()]  # fmt: skip
            ranking = replace(
                ranking,
                labels=len(labels),
                guesses=self._guesses(model, labels, [*ranking.ids, *ahead]),
                correct=sum(right),
                of=len(right),
            )
        return replace(ranking, seconds=time.monotonic() - start_time)

    def probabilities(self, state: LabelState) -> tuple[NDArray[np.float32], int] | None:
        """Return (n, classes) probabilities of all samples, and how many labels taught them.

        NaN for samples that cannot be read; None where there are no labels of two classes.
        """
        linear_model = self.final_model(state)
        return (
            None
            if linear_model is None
            else (self.apply(linear_model[0], self.features), linear_model[1])
        )

    def final_model(self, state: LabelState) -> tuple[nn.Linear, int] | None:
        """Return a model of all labels that may be trained on, and their count.

        None where there are no labels of two classes.
        """
        labels = state.labels(control=False)
        if state.closed:
            labels |= state.labels(control=True)
        labels = self.usable(labels)
        if self.settings.kind in OUTLINES or len({_key(label) for label in labels.values()}) < 2:
            return None
        return self._fit(labels), len(labels)

    def apply(self, model: nn.Linear, features: Floats) -> NDArray[np.float32]:
        """Return (n, classes) probabilities. features: (n, d), standardised as the learner's."""
        return apply_model(model, features, self.settings.kind)

    def agreement(
        self, labels: Mapping[str, AnswerLabel], control_answers: Mapping[str, AnswerLabel]
    ) -> list[bool]:
        """Return, per checked sample, whether a model of `labels` agrees with its label.

        All samples must be readable (`usable`); False where there are no labels of two classes.
        """
        if len({_key(label) for label in labels.values()}) < 2:
            return [False] * len(control_answers)
        model = self._fit(labels)
        return [self._predict(model, id_) == label for id_, label in control_answers.items()]

    def probabilities_of(
        self, labels: Mapping[str, AnswerLabel], ids: Sequence[str]
    ) -> NDArray[np.float32]:
        """Return (n, classes) probabilities of readable samples, by a model of `labels`."""
        return self.apply(self._fit(labels), self.features[[self._position[id_] for id_ in ids]])

    def usable(self, labels: Mapping[str, AnswerLabel]) -> dict[str, AnswerLabel]:
        """Return the labels of samples that are there and can be read."""
        return {
            id_: label
            for id_, label in labels.items()
            if id_ in self._position and self._readable[self._position[id_]]
        }

    def _candidates(self, state: LabelState) -> list[int]:
        open_ = (
            self._position[id_]
            for id_ in self.queue.others
            if id_ not in state.answers
            and id_ not in state.copies
            and self._readable[self._position[id_]]
        )
        return sorted(position for position, _ in zip(open_, range(_CANDIDATES), strict=False))

    def _cover(self, labels: Mapping[str, AnswerLabel], candidates: Sequence[int]) -> Ranking:
        """The cold start: one ranking, kept until its samples are answered."""
        open_ = {self.ids[i] for i in candidates}
        if self._cold is not None:
            left = [id_ for id_ in self._cold.ids if id_ in open_]
            if left:
                return replace(self._cold, ids=left)
        if not candidates:
            return Ranking((), COLD_START)
        count = max(self.settings.cold_start - len(labels), _FEWEST)
        budget = min(count, len(candidates))
        strategy = strategies.build(COLD_START)
        model = nn.Linear(self.features.shape[1], _count_outputs(self.settings))
        ids, _ = self._select(strategy, model, labels, candidates, budget)
        self._cold = Ranking(ids, f"{COLD_START} covers the data before there are labels")
        return self._cold

    def _by_strategy(
        self, model: nn.Linear, labels: Mapping[str, AnswerLabel], candidates: Sequence[int]
    ) -> Ranking:
        if not candidates:
            return Ranking((), self.settings.strategy)
        strategy = strategies.build(self.settings.strategy)
        budget = min(_BATCH, len(candidates))
        best, scores = self._select(strategy, model, labels, candidates, budget)
        others = sorted(scores.keys() - set(best), key=lambda id_: (-scores[id_], id_))
        ids = [*best, *others[: _MOST_RANKS - len(best)]]
        return Ranking(
            ids, f"{self.settings.strategy} chose it", {i: scores[i] for i in ids if i in scores}
        )

    def _select(
        self,
        strategy: Strategy,
        model: nn.Linear,
        labels: Mapping[str, AnswerLabel],
        candidates: Sequence[int],
        budget: int,
    ) -> tuple[list[str], dict[str, float]]:
        """(ids in the order of choice, scores of all candidates where the strategy has some)."""
        selector = Selector(
            strategy,
            self._task,
            self._pool,
            ExperimentSettings(seed=self.settings.seed),
            torch.device("cpu"),
            no_progress,
            Stop(),
        )
        positions = [self._position[id_] for id_ in labels]
        order = sorted(range(len(positions)), key=positions.__getitem__)
        values = list(labels.values())
        targets = torch.tensor([values[i] for i in order], dtype=torch.int64)
        labelled = LabelledSet([positions[i] for i in order], targets)
        single = None if self.settings.kind == "labels" else targets
        ids = list(labels)

        def train(places: Sequence[int]) -> nn.Module:
            train_ids = [ids[order[place]] for place in places]
            return self._fit({id_: labels[id_] for id_ in train_ids})

        view, selection, _ = selector.choose(
            budget, len(labels), model, candidates, candidates, labelled, single, train=train
        )
        if scores_of(view, selection) is None or selection.scores is None:
            return list(selection.ids), {}
        scores = dict(zip(view.candidates, selection.scores.tolist(), strict=True))
        return list(selection.ids), scores

    def _fit(self, labels: Mapping[str, AnswerLabel]) -> nn.Linear:
        """A linear layer with the weights of the logistic regression on the labels."""
        x = self.features[[self._position[id_] for id_ in labels]]
        y = np.array(list(labels.values()))
        model = nn.Linear(x.shape[1], len(self.settings.classes))
        with torch.no_grad():
            model.weight.zero_()
            model.bias.fill_(_UNSEEN)
            if self.settings.kind == "class":
                classes_seen, weight, bias = _regression(x, y)
                model.weight[classes_seen] = weight
                model.bias[classes_seen] = bias
            else:
                for k in range(len(self.settings.classes)):
                    if len(set(y[:, k])) == 2:
                        _, weight, bias = _regression(x, y[:, k])
                        model.weight[k], model.bias[k] = weight[1] - weight[0], bias[1] - bias[0]
                    elif y[0, k] == 1:
                        model.bias[k] = -_UNSEEN
        return model.eval()

    def _logits(self, model: nn.Linear, id_: str) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(torch.from_numpy(self.features[self._position[id_]]))
            return logits

    def _predict(self, model: nn.Linear, id_: str) -> AnswerLabel:
        logits = self._logits(model, id_)
        if self.settings.kind == "class":
            return int(logits.argmax())
        return [int(z > 0) for z in logits.tolist()]

    def _guesses(
        self, model: nn.Linear, labels: Mapping[str, AnswerLabel], ids: Sequence[str]
    ) -> dict[str, Guess]:
        """What the model makes of samples, and the labelled sample that is most like each."""
        labelled = list(labels)
        labelled_features = _unit(self.features[[self._position[id_] for id_ in labelled]])
        guesses = {}
        for id_ in ids:
            if not self._readable[self._position[id_]]:
                continue
            logits = self._logits(model, id_)
            p = logits.softmax(0) if self.settings.kind == "class" else logits.sigmoid()
            order = p.argsort(descending=True)[:_GUESSES].tolist()
            classes = [(self.settings.classes[k], float(p[k])) for k in order]
            near = int(
                (labelled_features @ _unit(self.features[[self._position[id_]]])[0]).argmax()
            )
            guesses[id_] = Guess(classes, labelled[near])
        return guesses


def apply_model(model: nn.Linear, features: Floats, kind: AnswerKind) -> NDArray[np.float32]:
    """Return (n, classes) probabilities. features: (n, d), standardised as the model's were."""
    with torch.no_grad():
        logits = model(torch.from_numpy(features))
    p = logits.softmax(1) if kind == "class" else logits.sigmoid()
    values: NDArray[np.float32] = p.numpy()
    return values


def _regression(x: Floats, y: NDArray[Any]) -> tuple[list[int], Tensor, Tensor]:
    """(classes, (k, d) weights, (k,) biases) of logistic regression; of two classes the first has
    zeros. One class alone has a layer of zeros, which is sure of it."""
    classes_seen = sorted({int(k) for k in y})
    if len(classes_seen) == 1:
        return classes_seen, torch.zeros(1, x.shape[1]), torch.zeros(1)
    # Importing scikit-learn takes a second that the page need not wait for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough to rank by
        regression = LogisticRegression(C=STRENGTH, max_iter=200).fit(x, y)
    weight = torch.from_numpy(regression.coef_).float()
    bias = torch.from_numpy(regression.intercept_).float()
    if len(regression.classes_) == 2:
        weight = torch.cat((torch.zeros_like(weight), weight))
        bias = torch.cat((torch.zeros_like(bias), bias))
    return [int(k) for k in regression.classes_], weight, bias


def _count_outputs(settings: ProjectSettings) -> int:
    """One class is enough for outlines, of which there is no model: two, as no output is read."""
    return 2 if settings.kind in OUTLINES else len(settings.classes)


def _task(settings: ProjectSettings) -> Task:
    if settings.kind in OUTLINES:
        return tasks.build("classification", num_classes=_count_outputs(settings))
    name = "multi-label" if settings.kind == "labels" else "classification"
    return tasks.build(name, num_classes=len(settings.classes), classes=settings.classes)


def _unit(x: Floats) -> Floats:
    unit: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    return unit


def _key(label: AnswerLabel) -> object:
    return tuple(label) if isinstance(label, list) else label
