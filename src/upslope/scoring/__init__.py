"""Scoring a pool with a model: signals for strategies, and scores to a file."""

from upslope.scoring.files import Scorer, ScoreReport, SignalScore, score_to_file
from upslope.scoring.signals import LabelledSet, SignalTable, compute_signals

__all__ = [
    "LabelledSet",
    "ScoreReport",
    "Scorer",
    "SignalScore",
    "SignalTable",
    "compute_signals",
    "score_to_file",
]
