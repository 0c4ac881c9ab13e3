"""Labels that a model doubts which has not seen them: candidates for a second look.

Confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021). Each labelled sample is predicted
by a model of the others (five folds). A class's threshold is the mean probability that its own
samples get for it. A label is doubted where another class gets at least its threshold and more than
the given one; the most doubtful is the one with the largest margin between the two. For label sets
each label is such a question of present or absent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from upslope.labelling.learner import Learner
from upslope.labelling.settings import OUTLINES
from upslope.labelling.state import LabelState

FOLDS = 5
_FEWEST = 30  # labels, below which models of four fifths of them know too little
_MOST = 50  # doubted labels told at once


def doubtful_labels(learner: Learner, state: LabelState) -> dict[str, str]:
    """Return id -> why, of labels that the model doubts, the most doubtful first.

    Labels that were asked again and given as before are left out.
    """
    if learner.settings.kind in OUTLINES:
        return {}
    labels = learner.usable({**state.labels(control=False), **state.labels(control=True)})
    if len(labels) < _FEWEST:
        return {}
    ids = np.array(list(labels))
    folds = np.random.default_rng(learner.settings.seed).permutation(len(ids)) % FOLDS
    p = np.zeros((len(ids), len(learner.settings.classes)))
    for fold in range(FOLDS):
        rest, fold_ids = ids[folds != fold].tolist(), ids[folds == fold].tolist()
        if len({str(labels[id_]) for id_ in rest}) < 2:
            return {}
        p[folds == fold] = learner.probabilities_of({i: labels[i] for i in rest}, fold_ids)
    answers = list(labels.values())
    if learner.settings.kind == "class":
        doubts = doubt_classes(p, np.array(answers))
    else:
        doubts = doubt_sets(p, np.array(answers))
    names = learner.settings.classes
    reasons = {}
    doubts = [doubt for doubt in doubts if ids[doubt[0]] not in state.settled]
    for position, k, margin in doubts[:_MOST]:
        what = f"the model takes it for {names[k]}"
        if learner.settings.kind == "labels":
            there = "without" if answers[position][k] else "with"  # type: ignore[index]
            what = f"the model takes it for one {there} {names[k]}"
        reasons[str(ids[position])] = (
            f"to look at its answer again: {what}, by {100 * margin:.0f} points of probability"
        )
    return reasons


def doubt_classes(
    p: NDArray[np.float64], answers: NDArray[np.int64]
) -> list[tuple[int, int, float]]:
    """Return (position, class that is likelier, margin) of doubted labels, largest margin first.

    p: (n, classes), of models that have not seen the sample. answers: (n,).
    """
    classes = p.shape[1]
    thresholds = np.full(classes, np.inf)  # a class without labels is never likelier
    for k in range(classes):
        if (answers == k).any():
            thresholds[k] = p[answers == k, k].mean()
    own_probability = p[np.arange(len(p)), answers]
    confident = np.where((p >= thresholds) & (p > own_probability[:, None]), p, -1.0)
    best = confident.argmax(axis=1)
    margins = confident[np.arange(len(p)), best] - own_probability
    places = np.flatnonzero(confident.max(axis=1) >= 0)
    order = places[np.argsort(-margins[places], kind="stable")]
    return [(int(i), int(best[i]), float(margins[i])) for i in order]


def doubt_sets(p: NDArray[np.float64], answers: NDArray[np.int64]) -> list[tuple[int, int, float]]:
    """Return (position, label, margin) of doubted sets, one label each, largest margin first.

    p: (n, labels), the probability that a label is present. answers: (n, labels), 0 or 1.
    """
    largest: dict[int, tuple[int, float]] = {}
    for k in range(p.shape[1]):
        if len(set(answers[:, k].tolist())) < 2:
            continue
        both = np.stack((1 - p[:, k], p[:, k]), axis=1)
        for position, _, margin in doubt_classes(both, answers[:, k]):
            if margin > largest.get(position, (k, -1.0))[1]:
                largest[position] = (k, margin)
    doubts = [(position, k, margin) for position, (k, margin) in largest.items()]
    return sorted(doubts, key=_by_margin)


def _by_margin(doubt: Sequence[float]) -> tuple[float, float]:
    return (-doubt[2], doubt[0])
