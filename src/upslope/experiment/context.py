"""The context of a run: its folder, data, settings and ledger, which all steps share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from upslope.datasets.splits import Splits
from upslope.experiment.own_training import Trainer
from upslope.experiment.settings import ExperimentSettings
from upslope.ledger import Ledger, State
from upslope.progress import Observer, no_progress, with_context
from upslope.tasks.base import Task
from upslope.training import TrainingSettings


@dataclass
class RunContext:
    """One run under one seed.

    path: the run directory. splits, task: what is learnt. training: our own loop's settings.
    trainer: a loop of the user's in its place. position: id -> place in the pool. observer: is told
    of progress; may be exchanged between two steps.
    """

    path: Path
    splits: Splits
    task: Task
    settings: ExperimentSettings
    training: TrainingSettings
    trainer: Trainer | None
    position: Mapping[str, int]
    device: torch.device
    ledger: Ledger
    observer: Observer = field(default=no_progress)

    @property
    def state(self) -> State:
        """Return where the run stands, as the ledger's events add up."""
        return self.ledger.state

    def labelled(self) -> list[int]:
        """Return the positions of the labelled set, in the order of the pool."""
        return sorted(self.position[i] for i in self.state.labels)

    def unlabelled(self) -> list[int]:
        """Return the positions of the samples that may still be asked."""
        state = self.state
        answered_ids = (
            state.labels.keys() | state.skipped | state.passed.keys() | set(state.pending)
        )
        return [p for i, p in self.position.items() if i not in answered_ids]

    def reporting(self) -> Observer:
        """Return the observer that is told the cycle and the number of labels too."""
        return with_context(
            self.observer,
            cycle=self.state.cycle,
            cycles=self.settings.cycles,
            labelled=len(self.state.labels),
        )
