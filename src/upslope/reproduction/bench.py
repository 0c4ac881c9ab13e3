"""Where artefacts get their numbers: every study is opened once, run once and measured once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.comparison import ComparisonResult
from upslope.comparison.workers import Runs
from upslope.config import Config
from upslope.ledger import RunResult
from upslope.progress import Observer, silent
from upslope.reproduction.jobs import each
from upslope.reproduction.measured import Figures, Measure, Measurements
from upslope.reproduction.scales import Scale
from upslope.reproduction.study import Opened, data_of, open_study

Watch = Callable[[str], AbstractContextManager[Observer]]
"""From a line that says what begins to somebody who watches it."""


def unwatched(_: str) -> AbstractContextManager[Observer]:
    """Nobody watches."""
    return nullcontext(silent)


@dataclass
class Bench:
    """sets, overrides: assignments for the configuration of every study, as `config.load` takes
    them. The studies lie in `<out>/studies/<name>/`."""

    scale: Scale
    out: Path
    sets: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch = unwatched
    _opened: dict[str, Opened] = field(default_factory=dict, init=False)
    _results: dict[str, ComparisonResult] = field(default_factory=dict, init=False)

    def config(self, name: str) -> Config:
        """The configuration of a study; opens no file."""
        return self.scale.studies[name].config(self.sets, self.overrides)

    def data_of(self, name: str) -> str:
        """What the data of a study is called in titles; no two of a picture are called the same."""
        return data_of(self.config(name), self.scale.studies[name].stand_in)

    def opened(self, name: str) -> Opened:
        """A study with its data.

        Raises:
            DataError: the data is not there.
        """
        if name not in self._opened:
            with self.watch(f"{name}: opening the data") as observer:
                self._opened[name] = open_study(
                    self.scale.studies[name], self.config(name), self.folder(name), observer
                )
        return self._opened[name]

    def folder(self, name: str) -> Path:
        """Where a study lies."""
        return self.out / "studies" / name

    def result(self, name: str) -> ComparisonResult:
        """The runs of a study, run now as far as they are not finished."""
        if name not in self._results:
            opened = self.opened(name)
            runs = len(opened.job.strategies) * len(opened.config.seeds)
            with self.watch(f"{name}: {runs} runs") as observer:
                self._results[name] = opened.run(observer)
        return self._results[name]

    def runs(self, *names: str) -> dict[str, tuple[RunResult, ...]]:
        """Strategy -> one run a seed, of several studies together."""
        together: dict[str, tuple[RunResult, ...]] = {}
        for name in names:
            together |= self.result(name).runs
        return together

    def measured(
        self, name: str, measure: Measure, strategies: Sequence[str], most_seeds: int | None = None
    ) -> dict[str, list[Figures]]:
        """Strategy -> what the measure found under each seed, of the strategies the study has."""
        self.result(name)
        opened = self.opened(name)
        seeds = opened.config.seeds[:most_seeds]
        there = tuple(s for s in strategies if s in opened.job.strategies)
        jobs = Measurements(opened, measure, there)
        with self.watch(f"{name}: measuring {measure.name}") as observer:
            each(jobs, seeds, min(opened.config.workers, len(seeds)), observer)
        return {s: [jobs.figures(s, seed) for seed in seeds] for s in there}

    def train(self, title: str, jobs: Runs, opened: Opened) -> None:
        """Trainings beside a study, under its seeds and with its workers."""
        with self.watch(title) as observer:
            each(jobs, opened.config.seeds, opened.config.workers, observer)
