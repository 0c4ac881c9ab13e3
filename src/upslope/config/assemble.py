"""From a configuration to the objects of a comparison, tried before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from upslope import datasets, models, strategies, tasks
from upslope.batches import resolve_device
from upslope.config.inputs import statistics
from upslope.config.schema import Config
from upslope.datasets.readable import first_readable
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError, UpslopeError, warn_user
from upslope.experiment.checks import check_fit, check_layers, check_targets
from upslope.experiment.start import start_strategy
from upslope.frozen import (
    Backbone,
    freeze,
    freeze_splits,
)
from upslope.pool import CostBudgeted, Strategy
from upslope.progress import Observer, no_progress
from upslope.tasks.base import Task


@dataclass(frozen=True)
class Setup:
    """What `comparison.compare` and `Experiment` take.

    splits: the data. task: the losses and figures. model: a factory of fresh networks. strategies:
    label -> strategy.
    """

    splits: Splits
    task: Task
    model: Callable[[], nn.Module]
    strategies: Mapping[str, Strategy]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Strategies that the task or the network cannot serve, and why not."""
    backbone: Backbone | None = None
    """The frozen network whose features the splits hold; `model` is then its head alone."""


def assemble(
    config: Config,
    progress: Observer = no_progress,
    reshape: Callable[[Splits], Splits] | None = None,
) -> Setup:
    """Return the data set that is opened, and the rest that is built around it.

    config: what to build. progress: is told of samples read.

    reshape: changes the splits before anything is built around them.

    With `model.freeze`, features are computed here, once the strategies were tried on a few.

    Raises:
        ConfigError, DataError, ModelError: what does not exist or does not fit together.
    """
    splits = datasets.load(config.data.name, config.root, progress=progress, **data_options(config))
    return build_around(config, reshape(splits) if reshape is not None else splits, progress)


_TASKS = {"numbers": "regression", "labels": "multi-label"}
"""The task of targets that a reader gives by `data.kind`."""
_MOST_NAMES = 5


def data_place(config: Config) -> str | None:
    """Return the absolute path of the data set's file or folder; None for one that needs none.

    config: of the run.
    """
    root = datasets.root_of(config.data.name, config.root)
    return None if root is None else str(Path(root).absolute())


def build_around(config: Config, splits: Splits, compute: Observer | None = None) -> Setup:
    """Build task, network and strategies around a data set.

    compute: is told of the features of a frozen network that are computed; None computes none but
    those of samples that are looked at.
    """
    pool = splits.pool
    _check_kind(config, pool.classes)
    _compare_classes(config, pool.classes)
    mean, std = statistics(config, pool)
    task = tasks.build(
        config.task.name,
        num_classes=len(pool.classes),
        mean=mean,
        std=std,
        classes=pool.classes,
        **config.task.options,
    )

    # A partial function, unlike a nested one, can travel to worker processes.
    model = partial(
        models.build,
        config.model.name,
        num_classes=len(pool.classes),
        input_shape=tuple(pool.input_shape),
        **config.model.options,
    )
    strategies_by_label: dict[str, Strategy] = {
        choice.label: strategies.build(choice.name, **choice.options)
        for choice in config.strategies
    }
    if not config.freeze:
        return Setup(splits, task, model, strategies_by_label)
    device = resolve_device(config.device)
    frozen = freeze(splits, task, model, device=device, compute=False)
    setup = Setup(frozen.splits, task, frozen.head, strategies_by_label, backbone=frozen.backbone)
    if compute is None:
        return setup
    check_compatible(config, setup)  # before minutes are spent on features
    return replace(setup, splits=freeze_splits(splits, frozen.backbone, device, observer=compute))


def data_options(config: Config) -> dict[str, Any]:
    """Return the options of the reader of the data set: those given, and what `on_corrupt` asks."""
    options = dict(config.data.options)
    if config.experiment.on_corrupt == "skip" and "on_error" in datasets.options(config.data.name):
        options.setdefault("on_error", "skip")
    return options


def _check_kind(config: Config, names: Sequence[str]) -> None:
    """Refuse a task of one class per sample for targets that are no classes."""
    wanted_task = _TASKS.get(str(config.data.options.get("kind")))
    if wanted_task is not None and config.task.name == "classification":
        columns = ", ".join(map(repr, names[:_MOST_NAMES])) + (" ..." * (len(names) > _MOST_NAMES))
        raise ConfigError(
            f"task.name: expected {wanted_task} for data.kind={config.data.options['kind']}, of "
            f"which {columns} {'is' if len(names) == 1 else 'are'} learnt, but got "
            f"{config.task.name}. Set task.name={wanted_task}."
        )


def _compare_classes(config: Config, names: Sequence[str]) -> None:
    """Warn where a trained head knows the classes of the data in another order."""
    options = config.model.options
    if config.model.name != "transformers" or not options.get("weights", True):
        return
    path = str(options.get("path", ""))
    of_head = models.head_classes(path)
    if of_head != tuple(names) and sorted(of_head) == sorted(names):
        order = ",".join(of_head)
        warn_user(
            f"The head of {path} was trained on the classes of these data in another order, and "
            f"begins by taking each for another: {', '.join(of_head)} instead of "
            f"{', '.join(names)}. Set data.classes=[{order}] where the data set has it.",
            UserWarning,
        )


def check_compatible(config: Config, setup: Setup) -> Setup:
    """Return the same setup, once every strategy was tried on a sample with an untrained network.

    Of `strategies: all`, those that cannot be served are left out.

    config: of the comparison. setup: what `assemble` made of it.

    Raises:
        ConfigError: strategies that were asked for by name and cannot be served, with the reasons;
            one with a cost budget beside other runs.
        DataError: no sample can be read; targets that are none of the task's.
    """
    model, sample = setup.model(), setup.task.prepare(first_readable(setup.splits.pool))
    names = [*model.state_dict()]
    setup.task.check(model, sample)
    check_layers(model, names)
    reasons: dict[str, str] = {}
    start = start_strategy(config.experiment.start, setup.splits.pool.input_shape)
    if start is not None:
        check_fit(start, model, setup.task, sample)
    for label, strategy in setup.strategies.items():
        try:
            check_fit(strategy, model, setup.task, sample)
        except UpslopeError as error:
            reasons[label] = str(error)
    if reasons and not config.every:
        raise ConfigError("\n".join(f"strategies.{label}: {why}" for label, why in reasons.items()))
    check_targets(setup.splits, setup.task)
    able = {label: s for label, s in setup.strategies.items() if label not in reasons}
    by_cost = [
        label
        for label, strategy in able.items()
        if isinstance(strategy, CostBudgeted) and strategy.cost_budget is not None
    ]
    if by_cost and len(able) * len(config.seeds) > 1:
        raise ConfigError(
            f"strategies.{by_cost[0]}: expected to run alone and under one seed, since its "
            "`cost_budget` decides how many labels each cycle has, and curves compare at equal "
            f"numbers, but got {len(able)} strategies and {len(config.seeds)} seeds. Take "
            "`upslope run --seeds [0]`, one folder a run, or leave `cost_budget` out."
        )
    return replace(setup, strategies=able, left_out=reasons)
