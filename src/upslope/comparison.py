"""Strategies x seeds under one protocol, paired seed by seed.

The runs lie in `<out>/<strategy>/seed-<s>/`, the references trained on every label of the pool in
`<out>/full-data/seed-<s>/`. Runs of one seed share the initial set, the initial weights, the data
order and hence the first model, which is trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upslope.datasets.base import Splits
from upslope.experiment import ExperimentSettings
from upslope.ledger import RunResult
from upslope.pool import Strategy
from upslope.progress import Observer, silent
from upslope.tasks.base import Task
from upslope.training import TrainingSettings

FULL_DATA = "full-data"


@dataclass(frozen=True)
class ComparisonResult:
    """runs: strategy -> one result a seed, in the order of the seeds; full_data: the references."""

    path: Path
    runs: Mapping[str, tuple[RunResult, ...]]
    full_data: tuple[RunResult, ...] = ()


def compare(
    out: Path | str,
    *,
    strategies: Mapping[str, Strategy],
    seeds: Sequence[int],
    splits: Splits,
    task: Task,
    model: Callable[[], nn.Module],
    settings: ExperimentSettings,
    training: TrainingSettings,
    full_data_seeds: Sequence[int] = (),
    config: Mapping[str, Any] | None = None,
    device: torch.device | str = "auto",
    workers: int = 1,
    observer: Observer = silent,
) -> ComparisonResult:
    """Run what is not finished yet, seed by seed, and read everything back."""
    raise NotImplementedError


def read_comparison(out: Path | str) -> ComparisonResult:
    """Read the runs under `out`, finished or not."""
    raise NotImplementedError
