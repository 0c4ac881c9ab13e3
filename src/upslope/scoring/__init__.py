"""Scoring a pool with a model: signals for strategies, and scores or predictions to a file."""

from upslope.scoring.files import (
    Scorer,
    ScoreReport,
    SignalScore,
    check_file_name,
    score_to_file,
)
from upslope.scoring.masks import check_folder, predict_masks, predicts_masks
from upslope.scoring.predictions import predict_to_file
from upslope.scoring.shards import PoolReport, ShardScorer, join_scores, score_pool
from upslope.scoring.signals import LabelledSet, SignalTable, compute_signals

__all__ = [
    "LabelledSet",
    "PoolReport",
    "ScoreReport",
    "Scorer",
    "ShardScorer",
    "SignalScore",
    "SignalTable",
    "check_file_name",
    "check_folder",
    "compute_signals",
    "join_scores",
    "predict_masks",
    "predict_to_file",
    "predicts_masks",
    "score_pool",
    "score_to_file",
]
