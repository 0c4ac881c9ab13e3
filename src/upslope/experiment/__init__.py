"""Algorithm 1 of the paper: train, score, ask, label, again; recorded step by step."""

from upslope.experiment.settings import ExperimentSettings

__all__ = ["ExperimentSettings"]
