"""Algorithm 1 of the paper: train, score, ask, label, again; recorded step by step."""

from upslope.experiment.earlier_labels import EarlierLabels, match_labels
from upslope.experiment.people import Sitting, sit
from upslope.experiment.run import Experiment
from upslope.experiment.settings import ExperimentSettings

__all__ = [
    "EarlierLabels",
    "Experiment",
    "ExperimentSettings",
    "Sitting",
    "match_labels",
    "sit",
]
