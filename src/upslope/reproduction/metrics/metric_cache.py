"""`measure`: a metric of finished runs, computed once and stored beside them; artefacts call it.

The file `<study>/measured/<metric>/<strategy>/seed-<s>.json` holds the numbers of one run. They are
computed again where the models or the options are not those that they were computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.files import json_digest, read_digested_json, write_digested_json
from upslope.progress import Observer, Stop
from upslope.reproduction.studies.finished_run import FinishedRun
from upslope.reproduction.studies.opened import OpenedStudy
from upslope.reproduction.studies.runner import StudyRunner

Numbers = dict[str, Any]
"""Plain data, as JSON holds it: name -> a number, or a list with one number per cycle."""


@dataclass(frozen=True)
class Metric:
    """A function of a finished run, with its options.

    name: of its folder. compute: a function at the top of a module, so that it travels to worker
    processes. options: the keyword arguments it is called with beside the run.
    """

    name: str
    compute: Callable[..., Numbers]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricJobs:
    """One metric of the runs of some strategies of a study: jobs of `run_jobs`.

    study: whose runs. metric: what is computed. strategies: of the study.
    """

    study: OpenedStudy
    metric: Metric
    strategies: tuple[str, ...]

    def names(self, seed: int) -> list[str]:  # noqa: ARG002
        """Return the strategies, which are the same under every seed."""
        return list(self.strategies)

    def run(self, name: str, seed: int, observer: Observer, stop: Stop) -> None:
        """Compute the metric of one run and store it, unless what is stored is of these models.

        Raises:
            RunError: the run is not finished, or the disk is full.
            UpslopeError: as the metric.
        """
        run = FinishedRun(self.study, name, seed, observer, stop)
        key = self._key(run)
        if self._read(name, seed).get("key") == key:
            return
        numbers = self.metric.compute(run, **self.metric.options)
        # Files of earlier versions have these keys: with others they would be computed again.
        write_digested_json(self._file(name, seed), {"key": key, "figures": numbers})

    def numbers(self, name: str, seed: int) -> Numbers:
        """Return the stored numbers of one run, computed by `run` before."""
        numbers: Numbers = self._read(name, seed)["figures"]
        return numbers

    def _key(self, run: FinishedRun) -> str:
        models = [cycle.model_sha256 for cycle in run.record.cycles]
        return json_digest([self.metric.name, dict(self.metric.options), models])

    def _file(self, name: str, seed: int) -> Path:
        return self.study.folder / "measured" / self.metric.name / name / f"seed-{seed}.json"

    def _read(self, name: str, seed: int) -> dict[str, Any]:
        """Return what is stored of one run; nothing where there is no file, or a damaged one."""
        # What is damaged is computed again from the models, whose digests are recorded.
        file = self._file(name, seed)
        return read_digested_json(file, "the metric is computed again") or {}


def measure(
    runner: StudyRunner,
    name: str,
    metric: Metric,
    strategies: Sequence[str],
    most_seeds: int | None = None,
) -> dict[str, list[Numbers]]:
    """Return strategy -> the metric's numbers, one entry per seed; what is missing is computed now.

    name: of the study, which is run first where it is not finished.
    strategies: those that the study does not have are left out.
    most_seeds: only so many seeds of the study, the first ones; None for all.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
        UpslopeError: a run or the metric failed.
    """
    runner.result(name)
    study = runner.open(name)
    seeds = study.config.seeds[:most_seeds]
    names = tuple(s for s in strategies if s in study.setup.strategies)
    jobs = MetricJobs(study, metric, names)
    workers = min(study.config.workers, len(seeds))
    runner.run_jobs(f"{name}: measuring {metric.name}", jobs, seeds, workers)
    return {s: [jobs.numbers(s, seed) for seed in seeds] for s in names}
