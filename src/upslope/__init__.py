"""Upslope: deep active learning by gradient norm.

    from upslope import gradient_norms            # score your own model
    from upslope import query                     # choose with a trained network
    from upslope import Experiment                # ask(), tell(): label by hand
    from upslope import compare                   # strategies x seeds under one protocol

Names are imported when they are first used, so that `import upslope` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "ComparisonResult": "upslope.comparison",
    "Experiment": "upslope.experiment",
    "ExperimentSettings": "upslope.experiment",
    "PoolView": "upslope.pool",
    "Progress": "upslope.progress",
    "Query": "upslope.experiment.query",
    "RunResult": "upslope.ledger",
    "Selection": "upslope.pool",
    "Splits": "upslope.datasets",
    "Strategy": "upslope.pool",
    "TrainingSettings": "upslope.training",
    "UpslopeError": "upslope.errors",
    "compare": "upslope.comparison",
    "gradient_norms": "upslope.gradnorm",
    "query": "upslope.experiment.query",
    "read_run": "upslope.ledger",
}

__all__ = [
    "ComparisonResult",
    "Experiment",
    "ExperimentSettings",
    "PoolView",
    "Progress",
    "Query",
    "RunResult",
    "Selection",
    "Splits",
    "Strategy",
    "TrainingSettings",
    "UpslopeError",
    "__version__",
    "compare",
    "gradient_norms",
    "query",
    "read_run",
]

if TYPE_CHECKING:
    from upslope.comparison import ComparisonResult, compare
    from upslope.datasets import Splits
    from upslope.errors import UpslopeError
    from upslope.experiment import Experiment, ExperimentSettings
    from upslope.experiment.query import Query, query
    from upslope.gradnorm import gradient_norms
    from upslope.ledger import RunResult, read_run
    from upslope.pool import PoolView, Selection, Strategy
    from upslope.progress import Progress
    from upslope.training import TrainingSettings


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'upslope' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
