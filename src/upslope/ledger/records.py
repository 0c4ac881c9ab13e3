"""A run read back: what each cycle cost, asked and reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CycleRecord:
    """One budget point: a model trained on `n_labelled` labels, and what was asked with it.

    metrics: figures on the test set. train_metrics: the same figures on the labelled set, without
    augmentation, for the gap between training and test. train_loss: mean loss of the last epoch.
    train_seconds, select_seconds: wall time; selecting counts signals fitted, scored and chosen.
    asked: ids chosen with this model, in order of choice; empty after the last cycle, after which
    nothing is selected. scores: their acquisition scores, None where a strategy has none.
    skipped: candidates that could not be read. reused: the model was trained by another run of
    the same comparison from the same seed, labels and settings; its seconds are that run's.
    """

    cycle: int
    n_labelled: int
    metrics: Mapping[str, float]
    train_metrics: Mapping[str, float]
    train_loss: float
    train_seconds: float
    model_file: str
    model_sha256: str
    reused: bool = False
    select_seconds: float = 0.0
    n_candidates: int = 0
    asked: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """Everything a run directory holds.

    config: as given when the run began. environment: versions, hardware, commit.
    info: strategy, seed, primary (the figure that curves show), pool and test sizes.
    initial: ids of the initial set. labels: id -> label; None where the data set holds it.
    pending: ids asked and not yet labelled. finished: every budget point has been evaluated.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    info: Mapping[str, Any]
    cycles: tuple[CycleRecord, ...]
    initial: tuple[str, ...]
    labels: Mapping[str, int | None]
    pending: tuple[str, ...]
    finished: bool

    @property
    def strategy(self) -> str:
        """Name of the strategy."""
        return str(self.info["strategy"])

    @property
    def seed(self) -> int:
        """Seed of everything random in the run."""
        return int(self.info["seed"])

    @property
    def primary(self) -> str:
        """The figure that learning curves show, a key of `CycleRecord.metrics`."""
        return str(self.info["primary"])

    def curve(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Labels used and the primary figure on the test set, one point a cycle."""
        return (
            tuple(c.n_labelled for c in self.cycles),
            tuple(c.metrics[self.primary] for c in self.cycles),
        )
