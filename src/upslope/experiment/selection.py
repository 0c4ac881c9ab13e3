"""One choice: the signals of the candidates, and what a strategy makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from upslope.datasets.base import Dataset
from upslope.experiment.checks import check_selection
from upslope.experiment.settings import ExperimentSettings
from upslope.pool import PoolView, Selection, Strategy
from upslope.progress import Observer, Progress, Stop
from upslope.scoring import LabelledSet, compute_signals
from upslope.scoring.signals import KnowsSignals
from upslope.seeds import generator
from upslope.tasks.base import Task


@dataclass(frozen=True)
class Selector:
    """What all choices of a run have in common.

    purpose: names the random numbers; choices of different purposes draw different ones. cache: a
    folder for what signals learn once for a run; None: nothing is kept.
    """

    strategy: Strategy
    task: Task
    pool: Dataset
    settings: ExperimentSettings
    device: torch.device
    observer: Observer
    stop: Stop
    purpose: str = "select"
    cache: Path | None = None

    def choose(
        self,
        budget: int,
        cycle: int,
        model: nn.Module,
        candidates: Sequence[int],
        unlabelled: Sequence[int],
        labelled: LabelledSet,
        labels: Tensor | None = None,
        companion: KnowsSignals | None = None,
        train: Callable[[Sequence[int]], nn.Module] | None = None,
        look_ahead: Callable[[Sequence[str]], float] | None = None,
    ) -> tuple[PoolView, Selection, list[str]]:
        """(what the strategy saw, what it chose, ids that could not be read).

        candidates, unlabelled: positions in the pool. labels: of the labelled, where a label is
        one number. train: trains a fresh network on these places of the labelled set. look_ahead:
        as `PoolView` has it.

        Raises:
            SelectionError: a strategy that broke its contract, or a budget that cannot be met.
        """
        table = compute_signals(
            self.strategy.needs,
            model,
            self.task,
            self.pool,
            candidates,
            device=self.device,
            seed=self.settings.seed,
            cycle=cycle,
            labelled=labelled,
            unlabelled=unlabelled,
            batch_size=self.settings.score_batch,
            on_corrupt=self.settings.on_corrupt,
            companion=companion,
            train=train,
            cache=self.cache,
            observer=self.observer,
            stop=self.stop,
        )
        ids = self.pool.ids
        view = PoolView(
            candidates=[ids[i] for i in table.candidates],
            signals=table.signals,
            labelled=[ids[i] for i in labelled.indices],
            labelled_signals=table.labelled_signals,
            labels=labels,
            look_ahead=look_ahead,
        )
        self.observer(Progress("select", 0, budget))
        rng = generator(self.settings.seed, self.purpose, cycle)
        selection = self.strategy.select(view, budget, rng)
        check_selection(self.strategy, view, selection, budget)
        self.observer(Progress("select", budget, budget))
        return view, selection, [ids[i] for i in table.skipped]
