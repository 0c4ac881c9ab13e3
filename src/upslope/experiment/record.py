"""The record that a run begins its ledger with: its configuration, and facts for its readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from upslope.datasets.splits import Splits
from upslope.experiment.changes import (
    backbone_of,
    ids_digest,
    input_type_of,
    probe_of,
    source_shape_of,
)
from upslope.experiment.checks import describe_strategy
from upslope.experiment.own_training import Trainer, name_of
from upslope.experiment.sample_probe import probe_samples
from upslope.experiment.settings import ExperimentSettings
from upslope.files import json_digest
from upslope.network_record import NetworkRecord
from upslope.plain_settings import settings_of
from upslope.pool import Strategy
from upslope.tasks.base import Normalises, Task
from upslope.tasks.recorded_options import task_options
from upslope.training import TrainingSettings


@dataclass(frozen=True)
class RunRecord:
    """The texts that a run begins its ledger with.

    further: what the caller adds to the configuration. root: where the data lie. network: as
    `describe_lastingly` tells of it. The other fields are as those of `Experiment`.
    """

    splits: Splits
    task: Task
    strategy: Strategy
    settings: ExperimentSettings
    training: TrainingSettings
    trainer: Trainer | None
    further: Mapping[str, Any]
    root: str | None
    network: NetworkRecord

    @cached_property
    def common(self) -> dict[str, Any]:
        """Return the configuration that all strategies of a comparison share."""
        pool, validation = self.splits.pool, self.splits.validation
        training = (
            self.training.record() if self.trainer is None else {"trainer": name_of(self.trainer)}
        )
        return {
            **self.further,
            "experiment": self.settings.record(),
            "training": training,
            "samples": {
                "pool": len(pool),
                "pool_ids_sha256": json_digest(list(pool.ids)),
                "test": len(self.splits.test),
                "validation": len(validation) if validation else 0,
                **backbone_of(pool),
            },
        }

    @property
    def config(self) -> dict[str, Any]:
        """Return what a run must be gone on with under, but for what may grow."""
        return {**self.common, "strategy": describe_strategy(self.strategy)}

    @property
    def given(self) -> dict[str, dict[str, Any]]:
        """Return the settings of objects that the configuration knows by their names alone.

        A loop that is a partial function: objects of other kinds may count what they have trained.
        """
        parts = {
            "strategy": settings_of(self.strategy),
            "trainer": settings_of(self.trainer) if isinstance(self.trainer, partial) else {},
        }
        as_read_back: dict[str, dict[str, Any]] = json.loads(json.dumps(parts))
        return as_read_back

    @property
    def info(self) -> dict[str, Any]:
        """Return what is never compared, and told to those who use the run and its networks."""
        pool, task = self.splits.pool, self.task
        return {
            "strategy": self.strategy.name,
            "seed": self.settings.seed,
            "primary": task.primary,
            "cycles": self.settings.cycles,
            "data": pool.name,
            "classes": list(pool.classes),
            "input_shape": list(pool.input_shape),
            **source_shape_of(pool),
            **input_type_of(pool),
            **probe_of(pool),
            "mean": list(task.mean if isinstance(task, Normalises) else ()),
            "std": list(task.std if isinstance(task, Normalises) else ()),
            "pool": len(pool),
            "test": len(self.splits.test),
            "task": task_options(task),
            "test_ids_sha256": ids_digest(self.splits.test),
            "validation_ids_sha256": ids_digest(self.splits.validation),
            "probe": {
                "pool_ids_sha256": json_digest(list(pool.ids)),
                "pool": probe_samples(pool),
                "test": probe_samples(self.splits.test, with_targets=True),
                "validation": probe_samples(self.splits.validation, with_targets=True),
            },
            "root": self.root,
            "network": self.network,
            "given": self.given,
        }
