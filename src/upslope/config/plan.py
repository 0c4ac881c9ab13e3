"""The plan of a comparison: its sizes, budgets and steps, told before anything is trained.

Where the data are not there, their published sizes stand in for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from upslope import datasets
from upslope.config.assemble import Setup, build_around, check_compatible, data_options
from upslope.config.schema import Config
from upslope.datasets.splits import Splits
from upslope.errors import DataError, SelectionError, UpslopeError
from upslope.experiment import ExperimentSettings
from upslope.experiment.changes import first_size
from upslope.experiment.settings import amount, candidate_count
from upslope.ledger import RunResult
from upslope.progress import Observer, no_progress


@dataclass(frozen=True)
class Plan:
    """What a comparison will do, before it does it.

    budgets: labels at each cycle. candidates: scored in each cycle. steps: optimiser steps at each
    cycle. parameters: trainable numbers of the model.

    pool, test: samples. classes: how many. input_shape: of one sample. runs, full_data_runs: how
    many.
    """

    pool: int
    test: int
    classes: int
    input_shape: tuple[int, ...]
    parameters: int
    budgets: tuple[int, ...]
    candidates: tuple[int, ...]
    steps: tuple[int, ...]
    runs: int
    full_data_runs: int

    @property
    def total_steps(self) -> int:
        """Return the optimiser steps of all runs, without what runs of one seed share."""
        return self.runs * sum(self.steps)


def plan(
    config: Config, setup: Setup, earlier: RunResult | None = None, initial: int | None = None
) -> Plan:
    """Return the sizes, budgets and steps of a comparison; trains nothing.

    config, setup: of the comparison. earlier: a run that is gone on with, whose labels so far may
    be other than settings say now. initial: labels that a run begins with, where they are those of
    an earlier one.

    Raises:
        SelectionError: more labels asked for than the pool holds.
    """
    settings, size = config.experiment, len(setup.splits.pool)
    budgets, candidates = _budgets(settings, size, earlier, initial)
    model = without_weights(setup.model)
    return Plan(
        pool=size,
        test=len(setup.splits.test),
        classes=len(setup.splits.pool.classes),
        input_shape=tuple(setup.splits.pool.input_shape),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        budgets=budgets,
        candidates=candidates,
        steps=tuple(config.training.steps_for(labels) for labels in budgets),
        runs=len(setup.strategies) * len(config.seeds),
        full_data_runs=min(config.full_data, len(config.seeds)),
    )


def size_check(config: Config) -> Callable[[Splits], Splits]:
    """Return what `assemble` takes as `reshape`: it refuses a pool with too few samples at once.

    Features of a frozen network, which take minutes, are then computed for no run that cannot be.

    config: of a comparison that has not begun, and has no labels of an earlier run.

    Raises, where it is called:
        SelectionError: more labels asked for than the pool holds.
    """

    def check(splits: Splits) -> Splits:
        _budgets(config.experiment, len(splits.pool), None, None)
        return splits

    return check


def without_weights(model: Callable[[], nn.Module]) -> nn.Module:
    """Return the network in shapes alone, on the device "meta": nothing is allocated or
    initialised.
    """
    try:
        with torch.device("meta"):
            return model().to("meta")
    except (RuntimeError, UpslopeError):  # one that reads numbers while it is built
        return model().to("meta")


def _budgets(
    settings: ExperimentSettings, size: int, earlier: RunResult | None, count: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first = size if earlier is None else first_size(earlier.changes, size)
    initial = amount(settings.initial, first, "initial") if count is None else count
    step = amount(settings.budget, first, "budget")
    label_counts = [cycle.n_labelled for cycle in earlier.cycles] if earlier is not None else []
    first_count = len(earlier.labels) + len(earlier.pending) if earlier is not None else 0
    if (
        earlier is not None
        and len(label_counts) < settings.cycles
        and first_count > max([0, *label_counts])
    ):
        label_counts.append(first_count)
    points = [*label_counts] or [initial]
    while len(points) < settings.cycles:
        points.append(points[-1] + step)
    budgets = tuple(points)
    if budgets[-1] > size and not label_counts:
        raise SelectionError(
            f"Expected the last cycle to need at most the {size} labels of the pool but {initial} "
            f"and {settings.cycles - 1} times {step} are {budgets[-1]}. Lower `experiment.cycles` "
            "or `experiment.budget`."
        )
    most = candidate_count(settings.candidates, step)
    left = (max(0, size - labels) for labels in budgets[:-1])
    return budgets, tuple(n if most is None else min(n, most) for n in left)


def assemble_from_published_sizes(config: Config) -> Setup | None:
    """Return a setup around the published sizes of a data set whose files are not there: for a
    plan.

    Its samples are random. None where the sizes are not known.

    config: what to build.

    Raises:
        ConfigError, ModelError: what does not exist or does not fit together.
    """
    splits = datasets.load_outline(config.data.name, **data_options(config))
    return None if splits is None else build_around(config, splits)


def to_plan(config: Config, progress: Observer = no_progress) -> tuple[Setup, str]:
    """Return the setup that `plan` and `estimate` need, and why its data was not opened.

    Where files are missing, and where they would have to be simulated first, the published sizes
    stand in for the data; otherwise the data is opened and the strategies are tried, and the
    second is empty.

    config: what to plan. progress: is told of samples read.

    Raises:
        ConfigError, DataError, ModelError: as for `assemble` and `check_compatible`.
    """
    datasets.check_root(config.root, config.data.name)
    if config.data.name in datasets.SIMULATED_SETS:
        outline = assemble_from_published_sizes(config)
        if outline is not None:
            return outline, "Its volumes are simulated when the run begins."
    try:
        splits = datasets.load(
            config.data.name, config.root, progress=progress, **data_options(config)
        )
        return check_compatible(config, build_around(config, splits)), ""
    except DataError as error:
        outline = assemble_from_published_sizes(config)
        if outline is None:
            raise
        return outline, str(error)
