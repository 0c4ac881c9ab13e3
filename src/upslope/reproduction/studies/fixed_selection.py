"""Training on labels that another run selected; Table 6 and the confound call it.

Each training is a run of one cycle, recorded and resumable as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from upslope import models
from upslope.experiment import Experiment
from upslope.files import json_digest
from upslope.ledger import RunResult, read_run
from upslope.pool import Need, PoolView, Selection
from upslope.progress import Observer, Stop
from upslope.reproduction.studies.opened import OpenedStudy
from upslope.training import TrainingSettings


@dataclass(frozen=True)
class FixedSelection:
    """A strategy that selects these ids, whatever the pool.

    ids: of the samples.
    """

    # Earlier runs recorded this name: they go on only if it stays.
    name: ClassVar[str] = "given"

    ids: tuple[str, ...]

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return no need: the selection is fixed."""
        return ()

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:  # noqa: ARG002
        """Return the ids; the pool, the budget and the generator are not looked at."""
        return Selection(self.ids)


@dataclass(frozen=True)
class FixedStart(FixedSelection):
    """A strategy whose initial set are these ids; in its one cycle it never selects."""

    @property
    def start(self) -> FixedSelection:
        """Return the strategy that selects the initial set."""
        return FixedSelection(self.ids)


@dataclass(frozen=True)
class FixedTrainings:
    """Trainings from scratch on fixed labels, at `<folder>/<name>/seed-<s>/`: jobs of `run_jobs`.

    study: whose data, task, network and settings they have.
    ids: name of a training -> seed -> ids of the samples with labels.
    model: name and options of another network; None for the study's.
    training: name -> its training settings; the study's where a name has none.
    """

    study: OpenedStudy
    folder: Path
    ids: Mapping[str, Mapping[int, tuple[str, ...]]]
    model: Mapping[str, Any] | None = None
    training: Mapping[str, TrainingSettings] | None = None

    def names(self, seed: int) -> list[str]:
        """Return the names of the trainings that have labels under this seed."""
        return [name for name, by_seed in self.ids.items() if seed in by_seed]

    def settings(self, name: str) -> TrainingSettings:
        """Return the settings of a training."""
        return (self.training or {}).get(name, self.study.training)

    def run(self, name: str, seed: int, observer: Observer, stop: Stop) -> None:
        """Train and evaluate one network, from where its run stands.

        Raises:
            UpslopeError: as `Experiment.run`.
        """
        study, ids, training = self.study, self.ids[name][seed], self.settings(name)
        protocol = {
            **study.protocol,
            "given": json_digest(list(ids)),
            **({"model": dict(self.model)} if self.model else {}),
            "training": {**asdict(training), "milestones": list(training.milestones)},
        }
        with Experiment(
            self.folder / name / f"seed-{seed}",
            splits=study.setup.splits,
            task=study.setup.task,
            model=self._factory(),
            strategy=FixedStart(ids),
            settings=replace(
                study.settings, seed=seed, initial=len(ids), cycles=1, keep_models="last"
            ),
            training=training,
            config=protocol,
            device=study.config.device,
            observer=observer,
            stop=stop,
        ) as experiment:
            experiment.run()

    def results(self, name: str, seeds: Sequence[int]) -> list[RunResult]:
        """Return the finished run of a training under each seed.

        Raises:
            RunError: one has not been run.
        """
        return [read_run(self.folder / name / f"seed-{seed}") for seed in seeds]

    def _factory(self) -> Any:
        if self.model is None:
            return self.study.setup.model
        pool = self.study.setup.splits.pool
        options = {k: v for k, v in self.model.items() if k != "name"}
        return partial(
            models.build,
            self.model["name"],
            num_classes=len(pool.classes),
            input_shape=tuple(pool.input_shape),
            **options,
        )


def ids_at_the_end(run: RunResult) -> tuple[str, ...]:
    """Return the sorted ids of the samples on which the last model of a run was trained."""
    ids = [*run.initial, *(id_ for cycle in run.cycles for id_ in cycle.asked)]
    return tuple(sorted(ids[: run.cycles[-1].n_labelled]))
