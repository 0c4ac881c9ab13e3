"""`StudyRunner`: every study is opened once and run once; artefacts take their runs from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.comparison import ComparisonResult
from upslope.comparison.jobs import run_jobs
from upslope.comparison.workers import Runs
from upslope.config import Config
from upslope.ledger import RunResult
from upslope.progress import Observer, no_progress, stop_on_signals
from upslope.reproduction.scales import Scale
from upslope.reproduction.studies.opened import OpenedStudy, describe_data, open_study

Watch = Callable[[str], AbstractContextManager[Observer]]
"""From a line of text that says what begins to the observer of its progress."""


def watch_nothing(_title: str) -> AbstractContextManager[Observer]:
    """Return an observer that shows nothing; the default `Watch`."""
    return nullcontext(no_progress)


@dataclass
class StudyRunner:
    """The studies of a scale, under `<out>/studies/<name>/`; opened and run when first asked for.

    scale: which studies there are. out: the folder of the whole reproduction.
    sets, overrides: assignments for the configuration of every study, as `config.load` takes them.
    watch: shows progress.
    """

    scale: Scale
    out: Path
    sets: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch = watch_nothing
    _studies: dict[str, OpenedStudy] = field(default_factory=dict, init=False)
    _results: dict[str, ComparisonResult] = field(default_factory=dict, init=False)

    def config(self, name: str) -> Config:
        """Return the checked configuration of a study; opens no file.

        Raises:
            ConfigError: an assignment that the study cannot take.
        """
        return self.scale.studies[name].config(self.sets, self.overrides)

    def describe_data(self, name: str) -> str:
        """Return the title of a study's data; two studies of one figure have different ones."""
        return describe_data(self.config(name), self.scale.studies[name].substitute)

    def open(self, name: str) -> OpenedStudy:
        """Return a study with its data, opened now if it was not before.

        Raises:
            DataError: the data is missing or damaged.
            ConfigError, ModelError: data, network and strategies do not fit together.
        """
        if name not in self._studies:
            with self.watch(f"{name}: opening the data") as observer:
                self._studies[name] = open_study(
                    self.scale.studies[name], self.config(name), self.folder(name), observer
                )
        return self._studies[name]

    def folder(self, name: str) -> Path:
        """Return the folder of a study, or of what is trained beside the studies."""
        return self.out / "studies" / name

    def result(self, name: str) -> ComparisonResult:
        """Return the runs of a study and its full-data references; those missing are run now.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the same call goes on.
            UpslopeError: the study cannot be opened, or a run failed.
        """
        if name not in self._results:
            study = self.open(name)
            runs = len(study.setup.strategies) * len(study.config.seeds)
            with self.watch(f"{name}: {runs} runs") as observer:
                self._results[name] = study.run(observer)
        return self._results[name]

    def runs(self, *names: str) -> dict[str, tuple[RunResult, ...]]:
        """Return strategy -> one run per seed, of several studies together; raises as `result`."""
        together: dict[str, tuple[RunResult, ...]] = {}
        for name in names:
            together |= self.result(name).runs
        return together

    def run_jobs(self, title: str, jobs: Runs, seeds: Sequence[int], workers: int) -> None:
        """Run jobs beside the studies, such as metrics and further trainings.

        title: shown while they run. jobs, seeds, workers: as `upslope.comparison.jobs.run_jobs`.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the same call goes on.
            UpslopeError: a job failed; what others recorded stays.
        """
        with self.watch(title) as observer, stop_on_signals() as stop:
            run_jobs(jobs, seeds, workers, observer, stop)
