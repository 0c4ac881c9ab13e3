"""One finished run, looked at from outside: its models, candidates and choices, cycle by cycle."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from upslope.batches import resolve_device
from upslope.errors import RunError
from upslope.experiment.choosing import Chooser
from upslope.experiment.drawing import candidates
from upslope.experiment.settings import ExperimentSettings, amount, candidate_count
from upslope.experiment.weights import Weights
from upslope.ledger import RunResult, read_run
from upslope.pool import Strategy
from upslope.progress import Observer, Stop, silent
from upslope.reproduction.study import Opened
from upslope.scoring import LabelledSet
from upslope.training import Accompanied


class Subject:
    """Positions are those of the pool; cycle c has the model T^c, trained on `labelled(c)`.

    Raises:
        RunError: the run is not finished, or its models were not kept.
    """

    def __init__(
        self,
        opened: Opened,
        name: str,
        seed: int,
        observer: Observer = silent,
        stop: Stop | None = None,
    ) -> None:
        self.opened, self.name, self.seed = opened, name, seed
        self.observer, self.stop = observer, stop or Stop()
        self.run: RunResult = read_run(opened.folder / name / f"seed-{seed}")
        self.task, self.pool, self.test = (
            opened.job.task,
            opened.job.splits.pool,
            opened.job.splits.test,
        )
        self.strategy: Strategy = opened.job.strategies[name]
        self.settings: ExperimentSettings = replace(opened.settings, seed=seed)
        if not self.run.finished or self.settings.keep_models != "all":
            raise RunError(
                f"Expected {self.run.path} to be finished, with the models of all cycles, but it "
                f"has {len(self.run.cycles)} of {self.settings.cycles} cycles and keep_models is "
                f"{self.settings.keep_models!r}. Run the study with keep_models=all."
            )
        self.device = resolve_device(opened.config.device)
        self.budget = amount(self.settings.budget, len(self.pool), "budget")
        self._weights = Weights(
            self.run.path,
            opened.job.model,
            seed,
            opened.training,
            self.device,
            self.strategy.companion() if isinstance(self.strategy, Accompanied) else None,
            keep_all=True,
        )

    @property
    def cycles(self) -> int:
        """How many models there are."""
        return len(self.run.cycles)

    @property
    def batch(self) -> int:
        """Most samples in a batch."""
        return self.settings.score_batch

    @cached_property
    def position(self) -> dict[str, int]:
        """Id -> position."""
        return {id_: i for i, id_ in enumerate(self.pool.ids)}

    def model(self, cycle: int) -> nn.Module:
        """T^c, in eval mode."""
        return self._weights.load(cycle).eval()

    def labelled(self, cycle: int) -> list[int]:
        """What T^c was trained on, in pool order."""
        known = [*self.run.initial, *(i for c in self.run.cycles[:cycle] for i in c.asked)]
        return sorted(self.position[i] for i in known)

    def unlabelled(self, cycle: int) -> list[int]:
        """The rest, in pool order."""
        known = set(self.labelled(cycle))
        return [i for i in range(len(self.pool)) if i not in known]

    def candidates(self, cycle: int) -> list[int]:
        """What the strategy chose among with T^c, in pool order."""
        count = candidate_count(self.settings.candidates, self.budget)
        unlabelled = self.unlabelled(cycle)
        return candidates(unlabelled, count, len(self.pool), seed=self.seed, cycle=cycle)

    def targets(self, positions: list[int]) -> Tensor:
        """(n, ...): the labels, which selection did not see."""
        return self.pool.targets(positions)

    def selected(self, cycle: int) -> list[int]:
        """What the strategy chose with T^c.

        After the last cycle no run selects anything; what it would have selected is found now.
        """
        if cycle < self.cycles - 1:
            return [self.position[i] for i in self.run.cycles[cycle].asked]
        return self.choose(cycle)

    def choose(self, cycle: int) -> list[int]:
        """The strategy's choice with T^c, made again: as in the run, in order of choice."""
        labelled = self.labelled(cycle)
        labels = self.targets(labelled)
        chooser = Chooser(
            self.strategy,
            self.task,
            self.pool,
            self.settings,
            self.device,
            self.observer,
            self.stop,
        )
        with self._weights.with_companion(cycle) as companion:
            _, selection, _ = chooser.choose(
                self.budget,
                cycle,
                self._weights.load(cycle),
                self.candidates(cycle),
                self.unlabelled(cycle),
                LabelledSet(labelled, labels),
                labels if labels.dim() == 1 and not torch.is_floating_point(labels) else None,
                companion,
            )
        return [self.position[i] for i in selection.ids]
