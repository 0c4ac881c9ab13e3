"""Algorithm 1 of the paper: train, score, ask, label, again; recorded step by step."""

from upslope.experiment.people import Sitting, sit
from upslope.experiment.run import Experiment
from upslope.experiment.settings import ExperimentSettings

__all__ = ["Experiment", "ExperimentSettings", "Sitting", "sit"]
