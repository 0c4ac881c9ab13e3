"""Statistics of learning curves: pure functions on arrays, nothing of a run or a model.

>>> from upslope.evaluation import area, mean_interval
>>> area([10, 20, 30], [[0.5, 0.7, 0.8]])
array([0.675])
"""

from __future__ import annotations

from upslope.evaluation.agreement import cohen_kappa, fleiss_kappa
from upslope.evaluation.curves import (
    INTERVAL_SEEDS,
    Interval,
    area,
    have_spread,
    labels_to_reach,
    mean_interval,
    told_interval,
)
from upslope.evaluation.equivalence import Equivalence, equivalence
from upslope.evaluation.labels_needed import LabelsNeeded, labels_needed
from upslope.evaluation.next_labels import PredictedGain, predict_gain
from upslope.evaluation.paired import (
    PairedResult,
    holm,
    paired_comparison,
    sign_flip_test,
    smallest_sign_flip_p,
)
from upslope.evaluation.proportions import Proportion, wilson_interval
from upslope.evaluation.saving import Saving, measure_saving
from upslope.evaluation.wins import Ranking, rank, win_matrix

__all__ = [
    "INTERVAL_SEEDS",
    "Equivalence",
    "Interval",
    "LabelsNeeded",
    "PairedResult",
    "PredictedGain",
    "Proportion",
    "Ranking",
    "Saving",
    "area",
    "cohen_kappa",
    "equivalence",
    "fleiss_kappa",
    "have_spread",
    "holm",
    "labels_needed",
    "labels_to_reach",
    "mean_interval",
    "measure_saving",
    "paired_comparison",
    "predict_gain",
    "rank",
    "sign_flip_test",
    "smallest_sign_flip_p",
    "told_interval",
    "wilson_interval",
    "win_matrix",
]
