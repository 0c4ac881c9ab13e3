"""Strategies x seeds under one protocol, paired seed by seed.

The runs lie in `<out>/<strategy>/seed-<s>/`, the references trained on every label of the pool in
`<out>/full-data/seed-<s>/`. Runs of one seed share the initial set, the initial weights, the data
order and hence the first model, which is trained once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from upslope.comparison.jobs import run_jobs
from upslope.datasets.checks import check_splits
from upslope.datasets.splits import Splits
from upslope.datasets.unlabelled import check_labelled
from upslope.display import watching_unless_observed
from upslope.distributed.engine import current
from upslope.distributed.ranks import Ranks
from upslope.errors import ConfigError, RunError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.experiment.own_training import Trainer
from upslope.ledger import RunResult, read_run
from upslope.ledger.store import has_begun
from upslope.pool import Need, PoolView, Selection, Strategy
from upslope.progress import Observer, Stop, stop_on_signals, with_context
from upslope.tasks.base import Task
from upslope.training import TrainingSettings

FULL_DATA = "full-data"
_OTHER_FOLDERS = (FULL_DATA, "report")
"""Folders of a comparison that hold no runs of a strategy."""
FOLDER_NAMES = f"letters, digits, - _ ., and none to be {' or '.join(_OTHER_FOLDERS)}"
"""What `names_a_folder` asks, in words."""
_FIRST_MODELS = ".first-models"


@dataclass(frozen=True)
class ComparisonResult:
    """runs: strategy -> one run per seed; full_data: one reference per seed.

    path: the folder of the comparison.
    """

    path: Path
    runs: Mapping[str, tuple[RunResult, ...]]
    full_data: tuple[RunResult, ...] = ()

    @property
    def finished(self) -> bool:
        """Every run has every budget point."""
        return all(run.finished for runs in (*self.runs.values(), self.full_data) for run in runs)


@dataclass(frozen=True)
class FullDataReference:
    """The strategy of the reference, which is trained on all labels: it never chooses."""

    name: ClassVar[str] = FULL_DATA

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return no need: the reference scores nothing."""
        return ()

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:  # noqa: ARG002
        """Nothing is left to choose."""
        return Selection(())


@dataclass(frozen=True)
class RunMatrix:
    """What the runs of a comparison have in common; pickled to reach other processes."""

    out: Path
    strategies: Mapping[str, Strategy]
    splits: Splits
    task: Task
    model: Callable[[], nn.Module]
    settings: ExperimentSettings
    training: TrainingSettings
    seeds: frozenset[int]
    full_data_seeds: frozenset[int]
    config: Mapping[str, Any] | None
    device: torch.device | str
    root: str | None = None
    trainer: Trainer | None = None

    def names(self, seed: int) -> list[str]:
        """The runs of one seed, in order."""
        strategies = self.strategies if seed in self.seeds else ()
        return [*strategies, *([FULL_DATA] if seed in self.full_data_seeds else [])]

    def read(self, name: str, seed: int) -> RunResult:
        """Return what one run has recorded."""
        return read_run(self.out / name / f"seed-{seed}")

    def run(self, name: str, seed: int, observer: Observer, stop: Stop) -> None:
        """Run one, from where it stands; nothing is done where it is finished."""
        settings = replace(self.settings, seed=seed)
        if name == FULL_DATA:
            settings = replace(settings, initial=1.0, cycles=1)
        label = f"{name}/seed-{seed}"
        with Experiment(
            self.out / label,
            splits=self.splits,
            task=self.task,
            model=self.model,
            strategy=FullDataReference() if name == FULL_DATA else self.strategies[name],
            settings=settings,
            training=self.training if self.trainer is None else None,
            trainer=self.trainer,
            config=self.config,
            root=self.root,
            device=self.device,
            observer=with_context(observer, run=label),
            shared=None if name == FULL_DATA else self.out / _FIRST_MODELS / f"seed-{seed}",
            stop=stop,
        ) as experiment:
            experiment.run()


def compare(
    out: Path | str,
    *,
    strategies: Mapping[str, Strategy],
    seeds: Sequence[int],
    splits: Splits,
    task: Task,
    model: Callable[[], nn.Module],
    settings: ExperimentSettings | None = None,
    training: TrainingSettings | None = None,
    trainer: Trainer | None = None,
    full_data_seeds: Sequence[int] = (),
    config: Mapping[str, Any] | None = None,
    device: torch.device | str = "auto",
    workers: int = 1,
    observer: Observer | None = None,
    progress: bool = True,
    root: str | None = None,
) -> ComparisonResult:
    """Run what is not finished yet, seed by seed, and read everything back.

    strategies: name of the folder -> strategy. settings.seed is replaced by each of `seeds`.
    full_data_seeds: those of the seeds that get a reference trained on the whole pool. config:
    what all runs share (data set, model), without the strategies and seeds: both may grow. root:
    where the data lie, recorded for `upslope score` and `predict`.

    workers: processes, each taking a whole seed at a time, with an equal part of the threads; the
    number of threads decides the order of sums, hence the last bits of every figure, and is kept
    with each run. Everything passed here must then be picklable.

    observer: is told of progress; without one, it is shown in a terminal or a notebook, unless
    `progress` is False.

    A finished comparison goes on where `settings.cycles` is larger than before, or the budget is:
    the latter only where all runs stand at the same cycle.

    task, model: as of an `Experiment`. training: how each network is trained;
    trainer: or a loop of your own, as of an `Experiment`. device: "auto",
    "cpu", "cuda" ...

    Returns: every run, read back from its folder.

    Raises:
        ConfigError: `splits` of another kind, samples of the pool without a label, no strategy, no
            seed, one that is there twice, a name that is no folder's, workers out of range.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; the same call goes on.
        RunError: worker processes were killed, and no other could take their seeds over.
        UpslopeError: a run failed; what was recorded stays.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from upslope import datasets, models, strategies, tasks
        >>> splits = datasets.load("digits", limit=40, test_limit=20)
        >>> mean, std = datasets.statistics(splits.pool)
        >>> task = tasks.build("classification", num_classes=10, mean=mean, std=std)
        >>> from functools import partial
        >>> network = partial(models.build, "mlp", num_classes=10, input_shape=(1, 8, 8), hidden=4)
        >>> with TemporaryDirectory() as folder:
        ...     result = compare(
        ...         folder,
        ...         strategies={name: strategies.build(name) for name in ("random", "margin")},
        ...         seeds=[0], splits=splits, task=task, model=network, progress=False,
        ...         settings=ExperimentSettings(initial=10, budget=5, cycles=2),
        ...         training=TrainingSettings(epochs=1),
        ...     )
        >>> {name: list(runs[0].curve()[0]) for name, runs in result.runs.items()}
        {'random': [10, 15], 'margin': [10, 15]}
    """
    check_splits(splits)
    check_labelled(splits.pool)
    if trainer is not None and training is not None:
        raise ConfigError(
            "Expected one of `training`, settings of the loop of Upslope, and `trainer`, a loop of "
            "your own, but got both. Leave one out."
        )
    seeds, full_data_seeds = [*map(_plain, seeds)], [*map(_plain, full_data_seeds)]
    plan = RunMatrix(
        Path(out),
        dict(strategies),
        splits,
        task,
        model,
        settings or ExperimentSettings(),
        training or TrainingSettings(),
        frozenset(seeds),
        frozenset(full_data_seeds),
        config,
        device,
        root,
        trainer,
    )
    order = list(dict.fromkeys([*seeds, *full_data_seeds]))
    _check(plan, order, workers)
    _check_each_once(seeds, "seeds")
    _check_each_once(full_data_seeds, "full_data_seeds")
    _check_budget(plan, seeds)
    runs = sum(len(plan.names(seed)) for seed in order)
    run_observer = watching_unless_observed(observer, runs, progress=progress)
    with stop_on_signals() as stop, run_observer as watcher:
        run_jobs(plan, order, workers, watcher, stop, plan.out)
    return ComparisonResult(
        plan.out,
        {name: tuple(plan.read(name, seed) for seed in seeds) for name in strategies},
        tuple(plan.read(FULL_DATA, seed) for seed in full_data_seeds),
    )


def read_comparison(out: Path | str) -> ComparisonResult:
    """Read the runs under `out`, finished or not.

    out: the folder of the comparison.

    Returns: every run that is there.

    Raises:
        RunError: no run there, or a damaged one.
    """
    out = Path(out)
    runs: dict[str, list[RunResult]] = {}
    for ledger in sorted(out.glob("*/seed-*/ledger.sqlite")):
        runs.setdefault(ledger.parts[-3], []).append(read_run(ledger.parent))
    if not runs:
        raise RunError(
            f"Expected runs in {out}, as <strategy>/seed-<number>/, but there are none. Give the "
            "folder of a comparison."
        )
    by_seed = {name: tuple(sorted(results, key=lambda r: r.seed)) for name, results in runs.items()}
    full_data = by_seed.pop(FULL_DATA, ())
    return ComparisonResult(out, by_seed, full_data)


def _check_budget(plan: RunMatrix, seeds: Sequence[int]) -> None:
    """Raise ConfigError where another budget would begin at different cycles of the runs."""
    since: dict[str, int] = {}
    for name in plan.strategies:
        for seed in seeds:
            path = plan.out / name / f"seed-{seed}"
            run = read_run(path) if has_begun(path) else None
            since[f"{name}/seed-{seed}"] = _since(run, plan.settings.budget)
    if len(set(since.values())) > 1:
        where = ", ".join(f"{name}: {cycle + 1}" for name, cycle in since.items())
        raise ConfigError(
            f"Expected a new `budget`, {plan.settings.budget}, to begin at one cycle of all runs, "
            f"so that they compare at equal numbers of labels, but it would begin at {where}. "
            "Finish them under the old budget first, or start in another folder."
        )


def _since(run: RunResult | None, budget: int | float) -> int:
    """The cycle from which a run has, or would have, this budget; 0: from its beginning."""
    if run is None:
        return 0
    if run.config["experiment"]["budget"] != budget:
        return len(run.cycles) + (1 if run.pending and run.cycles else 0) if run.initial else 0
    cycles = [c.cycle for c in run.changes if "experiment.budget" in c.after]
    return cycles[-1] if cycles else 0


def names_a_folder(label: str) -> bool:
    """Return whether the runs of a strategy can lie in a folder of this name."""
    return label not in _OTHER_FOLDERS and bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", label))


def _plain(seed: Any) -> Any:
    """Return a whole number of NumPy as one of Python, which a ledger can record."""
    return int(seed) if isinstance(seed, np.integer) else seed


def _check_each_once(seeds: Sequence[int], name: str) -> None:
    if twice := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise ConfigError(
            f"Expected each of `{name}` once but got {twice[0]} again: its run would count twice "
            "in means and tests. Leave it out."
        )


def _check(plan: RunMatrix, seeds: Sequence[int], workers: int) -> None:
    problems = []
    if not plan.strategies:
        problems.append("Expected at least one strategy to compare but got none.")
    if not seeds:
        problems.append("Expected at least one seed but got none.")
    problems += [
        f"Expected `seeds` to be whole numbers of at least 0 but got {seed!r}."
        for seed in seeds
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0
    ]
    problems += [
        f"Expected names of strategies to serve as folders ({FOLDER_NAMES}) but got {name!r}."
        for name in plan.strategies
        if not names_a_folder(name)
    ]
    if workers < 1:
        problems.append(f"Expected `workers` to be at least 1 but got {workers}.")
    if workers > 1 and isinstance(current(), Ranks):
        problems.append(
            f"Expected `workers` to be 1, as torchrun started several processes for each training, "
            f"but got {workers}. Leave one of them out."
        )
    if problems:
        raise ConfigError("\n".join(problems))
