"""A study with its data at hand, ready to run; `StudyRunner` makes and keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.comparison import ComparisonResult, compare
from upslope.config import Config, Setup, assemble, check_compatible
from upslope.experiment import ExperimentSettings
from upslope.progress import Observer, no_progress
from upslope.reproduction.scales import Study
from upslope.reproduction.studies.substitute_data import SUBSTITUTES
from upslope.training import TrainingSettings


@dataclass(frozen=True)
class OpenedStudy:
    """A declared study with its data read and its network and strategies built; picklable.

    study: its declaration. config: its configuration, with the assignments of this call.
    setup: data set, task, network and strategies. folder: where its runs lie.
    """

    study: Study
    config: Config
    setup: Setup
    folder: Path

    @property
    def settings(self) -> ExperimentSettings:
        """Return the settings that all runs have in common; the seed is replaced in each."""
        return self.config.experiment

    @property
    def training(self) -> TrainingSettings:
        """Return the settings by which every model of the study is trained."""
        return self.config.training

    @property
    def protocol(self) -> dict[str, Any]:
        """Return the configuration that is recorded with each run, and compared when it is
        resumed.
        """
        # The key is the one under which earlier runs recorded it: they go on only if it stays.
        return {**self.config.protocol(), "stand_in": self.study.substitute}

    @property
    def full_data_seeds(self) -> tuple[int, ...]:
        """Return the seeds that have a model trained on every label of the pool."""
        return self.config.seeds[: self.config.full_data]

    def run(self, observer: Observer = no_progress) -> ComparisonResult:
        """Run what is not finished, and return all runs of the study, read back from disk.

        observer: is told of progress.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the same call goes on.
            UpslopeError: as `upslope.compare`.
        """
        return compare(
            self.folder,
            strategies=self.setup.strategies,
            seeds=self.config.seeds,
            splits=self.setup.splits,
            task=self.setup.task,
            model=self.setup.model,
            settings=self.settings,
            training=self.training,
            full_data_seeds=self.full_data_seeds,
            config=self.protocol,
            device=self.config.device,
            workers=self.config.workers,
            observer=observer,
        )


def describe_data(config: Config, substitute: str | None) -> str:
    """Return the title of a study's data: the data set, its substitute if any, and its noise.

    config: of the study. substitute: a key of `SUBSTITUTES`, or None.
    """
    snr = config.data.options.get("snr")
    suffix = f" ({substitute})" if substitute else ""
    return f"{config.data.name}{suffix}" + (f", SNR {snr}" if snr is not None else "")


def open_study(
    study: Study, config: Config, folder: Path, progress: Observer = no_progress
) -> OpenedStudy:
    """Read the data of a study, build its network and strategies, and try them on two samples.

    study: its declaration. config: its configuration. folder: where its runs lie or will lie.
    progress: is told how far the reading of the data is.

    Raises:
        DataError: the data is missing or damaged.
        ConfigError, ModelError: data, network, task and strategies do not fit together.
    """
    substitute = SUBSTITUTES[study.substitute] if study.substitute else None
    setup = check_compatible(config, assemble(config, progress, substitute))
    return OpenedStudy(study, config, setup, folder)
