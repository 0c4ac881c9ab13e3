"""The data of a report: the curves of several runs, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.errors import RunError
from upslope.ledger import RunResult

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One strategy under one seed, as far as it got.

    budgets, scores: one entry a finished cycle: labels, and the figure on the test set (a share).

    strategy, seed: which. training_seconds, selecting_seconds: of all cycles.
    """

    strategy: str
    seed: int
    budgets: tuple[int, ...]
    scores: tuple[float, ...]
    cycles: int
    """Cycles that the run was to have."""
    training_seconds: float = 0.0
    selecting_seconds: float = 0.0
    ceiling: float | None = None
    """The figure of a model trained on the whole pool, where that was asked for."""
    unfitted: tuple[int, ...] = ()
    """Labels at which the network had not learnt them: see `upslope.ledger.records.is_fitted`."""
    changes: tuple[str, ...] = ()
    """What became otherwise in the course of the run: more cycles, a larger pool."""
    record: RunResult | None = field(default=None, compare=False, repr=False)
    """The run as its ledger holds it: what was asked, with which scores; None for made-up runs."""

    @property
    def complete(self) -> bool:
        """Whether every cycle was trained and evaluated."""
        return len(self.scores) >= self.cycles


@dataclass(frozen=True)
class Study:
    """Runs that may be compared: same data, model, training and budgets.

    config: the resolved configuration they share. environment: versions, hardware, commit.

    runs: of all strategies and seeds. metric: the figure shown. pool_size: samples of the pool.
    name: what reports of several data sets call it. notes: what a reader must know about where
    the runs come from.
    """

    runs: tuple[Run, ...]
    metric: str = "accuracy"
    pool_size: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def strategies(self) -> tuple[str, ...]:
        """Return the names of the strategies, in the order in which they first appear."""
        return tuple(dict.fromkeys(run.strategy for run in self.runs))

    @property
    def incomplete(self) -> tuple[Run, ...]:
        """The runs that no statistic counts."""
        return tuple(run for run in self.runs if not run.complete)

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets of the complete runs.

        Raises:
            RunError: no run is complete, or complete runs differ in their budgets.
        """
        run_with = {run.budgets: run for run in self.runs if run.complete}
        if not run_with:
            progress_words = ", ".join(_progress(run) for run in self.runs) or "no run"
            raise RunError(
                f"Expected at least one complete run but got {progress_words}. Run again "
                "the command that began them: it goes on where it stopped."
            )
        if len(run_with) > 1:
            run_words = "; ".join(
                f"{r.strategy} seed {r.seed}: {list(b)}" for b, r in run_with.items()
            )
            raise RunError(
                f"Expected all runs to have the same budgets but got {run_words}. Report them "
                "apart."
            )
        return next(iter(run_with))

    def complete(self, strategy: str) -> dict[int, Run]:
        """The complete runs of one strategy, by seed, in the order of the seeds.

        Raises:
            RunError: two runs of one seed.
        """
        runs: dict[int, Run] = {}
        for run in sorted(self.runs, key=lambda run: run.seed):
            if run.strategy != strategy or not run.complete:
                continue
            if run.seed in runs:
                raise RunError(
                    f"Expected one run for each strategy and seed but {strategy} has seed "
                    f"{run.seed} twice. Leave one of the two directories out."
                )
            runs[run.seed] = run
        return runs

    def curves(self, strategy: str, seeds: Sequence[int]) -> Array:
        """Return the figures of the complete runs of these seeds, (n_seeds, n_budgets).

        strategy: its name. seeds: which runs.
        """
        runs = self.complete(strategy)
        return np.array([runs[seed].scores for seed in seeds], dtype=np.float64)

    @property
    def ceiling(self) -> float | None:
        """The full-data figure, mean over the seeds that have it (one value per seed)."""
        by_seed = {run.seed: run.ceiling for run in self.runs if run.ceiling is not None}
        return float(np.mean(list(by_seed.values()))) if by_seed else None


def _progress(run: Run) -> str:
    return f"{run.strategy} seed {run.seed} at {len(run.scores)} of {run.cycles} cycles"
