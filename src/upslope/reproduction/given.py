"""Training on labels that were chosen elsewhere: one cycle, recorded and resumable as any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from upslope import models
from upslope.experiment import Experiment
from upslope.experiment.checks import digest
from upslope.ledger import RunResult, read_run
from upslope.pool import Need, PoolView, Selection
from upslope.progress import Observer, Stop
from upslope.reproduction.study import Opened
from upslope.training import TrainingSettings


@dataclass(frozen=True)
class Given:
    """Chooses these samples, whatever it sees."""

    name: ClassVar[str] = "given"

    ids: tuple[str, ...]

    @property
    def needs(self) -> tuple[Need, ...]:
        """Nothing."""
        return ()

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:  # noqa: ARG002
        """All of them."""
        return Selection(self.ids)


@dataclass(frozen=True)
class StartsWith(Given):
    """Has these samples labelled at the start, and chooses nothing afterwards."""

    @property
    def start(self) -> Given:
        """Chooses the initial set."""
        return Given(self.ids)


@dataclass(frozen=True)
class Trainings:
    """Trainings from scratch on given labels: the jobs of `each`, at `<folder>/<name>/seed-<s>/`.

    chosen: name -> seed -> ids. model: name and options; None for the study's. training: name ->
    settings; the study's where a name has none.
    """

    opened: Opened
    folder: Path
    chosen: Mapping[str, Mapping[int, tuple[str, ...]]]
    model: Mapping[str, Any] | None = None
    training: Mapping[str, TrainingSettings] | None = None

    def names(self, seed: int) -> list[str]:
        """Those that have labels under this seed."""
        return [name for name, by_seed in self.chosen.items() if seed in by_seed]

    def run(self, name: str, seed: int, observer: Observer, stop: Stop) -> None:
        """Train and evaluate once."""
        opened, ids = self.opened, self.chosen[name][seed]
        training = (self.training or {}).get(name, opened.training)
        protocol = {
            **opened.protocol,
            "given": digest(list(ids)),
            **({"model": dict(self.model)} if self.model else {}),
            "training": {**asdict(training), "milestones": list(training.milestones)},
        }
        with Experiment(
            self.folder / name / f"seed-{seed}",
            splits=opened.job.splits,
            task=opened.job.task,
            model=self._factory(),
            strategy=StartsWith(ids),
            settings=replace(
                opened.settings, seed=seed, initial=len(ids), cycles=1, keep_models="last"
            ),
            training=training,
            config=protocol,
            device=opened.config.device,
            observer=observer,
            stop=stop,
        ) as experiment:
            experiment.run()

    def results(self, name: str, seeds: Sequence[int]) -> list[RunResult]:
        """What was reached."""
        return [read_run(self.folder / name / f"seed-{seed}") for seed in seeds]

    def _factory(self) -> Any:
        if self.model is None:
            return self.opened.job.model
        pool = self.opened.job.splits.pool
        options = {k: v for k, v in self.model.items() if k != "name"}
        return partial(
            models.build,
            self.model["name"],
            num_classes=len(pool.classes),
            input_shape=tuple(pool.input_shape),
            **options,
        )


def labels_of(run: RunResult, cycle: int = -1) -> tuple[str, ...]:
    """The ids that the model of a cycle was trained on, the last by default."""
    count = run.cycles[cycle].n_labelled
    known = [*run.initial, *(i for c in run.cycles for i in c.asked)]
    return tuple(sorted(known[:count]))
