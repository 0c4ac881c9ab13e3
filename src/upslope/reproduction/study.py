"""A study: one comparison that several artefacts read, declared first, then opened, then run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.comparison import ComparisonResult, compare
from upslope.config import Config, Job, assemble, fitting, load
from upslope.experiment import ExperimentSettings
from upslope.progress import Observer, silent
from upslope.reproduction.stand_ins import STAND_INS
from upslope.training import TrainingSettings


@dataclass(frozen=True)
class Study:
    """Declared: what a configuration file for `upslope compare` would hold.

    stand_in: a key of `STAND_INS`, what is made of the data set; None for the data set itself.
    """

    name: str
    document: Mapping[str, Any]
    stand_in: str | None = None

    def config(
        self, sets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
    ) -> Config:
        """With assignments on top, as `upslope compare --set` takes them.

        Raises:
            ConfigError: values that cannot be.
        """
        return load(self.document, sets=sets, overrides=overrides)


@dataclass(frozen=True)
class Opened:
    """With its data at hand and its network and strategies built; picklable."""

    study: Study
    config: Config
    job: Job
    folder: Path

    @property
    def settings(self) -> ExperimentSettings:
        """What all runs have in common but the seed."""
        return self.config.experiment

    @property
    def training(self) -> TrainingSettings:
        """How every model is trained."""
        return self.config.training

    @property
    def protocol(self) -> dict[str, Any]:
        """What is recorded with each run."""
        return {**self.config.protocol(), "stand_in": self.study.stand_in}

    @property
    def full_data_seeds(self) -> tuple[int, ...]:
        """Seeds with a model trained on every label."""
        return self.config.seeds[: self.config.full_data]

    def run(self, observer: Observer = silent) -> ComparisonResult:
        """Run what is not finished; all of it read back. Raises as `compare` does."""
        return compare(
            self.folder,
            strategies=self.job.strategies,
            seeds=self.config.seeds,
            splits=self.job.splits,
            task=self.job.task,
            model=self.job.model,
            settings=self.settings,
            training=self.training,
            full_data_seeds=self.full_data_seeds,
            config=self.protocol,
            device=self.config.device,
            workers=self.config.workers,
            observer=observer,
        )


def data_of(config: Config, stand_in: str | None) -> str:
    """What a study is of, as titles have it: the data set, what is made of it, and its noise."""
    snr = config.data.options.get("snr")
    made = f" ({stand_in})" if stand_in else ""
    return f"{config.data.name}{made}" + (f", SNR {snr}" if snr is not None else "")


def open_study(study: Study, config: Config, folder: Path, progress: Observer = silent) -> Opened:
    """Read the data, build the rest, and refuse what cannot work.

    Raises:
        DataError: the data is not there.
        ConfigError, ModelError: what does not fit together.
    """
    reshape = STAND_INS[study.stand_in] if study.stand_in else None
    return Opened(study, config, fitting(config, assemble(config, progress, reshape)), folder)
