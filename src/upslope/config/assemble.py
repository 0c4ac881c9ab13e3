"""From a configuration to the objects of a comparison, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import device as Device
from torch import nn

from upslope import datasets, models, strategies, tasks
from upslope.batches import resolve_device
from upslope.checkpoints import load_weights, read_weights, trained_classes
from upslope.config.inputs import statistics
from upslope.config.recorded import ENCODED, Source
from upslope.config.schema import Config
from upslope.datasets.base import Dataset, Splits, place_of
from upslope.datasets.readable import first_readable
from upslope.errors import ConfigError, DataError, ModelError, SelectionError, UpslopeError
from upslope.experiment import ExperimentSettings
from upslope.experiment.changes import first_size
from upslope.experiment.checks import check_fit, digest
from upslope.experiment.settings import amount, candidate_count
from upslope.experiment.start import start_strategy
from upslope.frozen import (
    Backbone,
    freeze,
    freeze_dataset,
    freeze_splits,
    same_summary,
    take_backbone,
)
from upslope.ledger import RunResult
from upslope.pool import CostBudgeted, Strategy
from upslope.progress import Observer, no_progress
from upslope.scoring import Scorer
from upslope.strategies.base import TopStrategy
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


@dataclass(frozen=True)
class Trained:
    """What `scoring.score_to_file` takes: `model` is in eval mode on `device`.

    classes: their names, where they are known.

    pool: the samples to score. task: as in training.
    """

    pool: Dataset
    task: Task
    model: nn.Module
    device: Device
    classes: tuple[str, ...] = ()


def trained(
    source: Source, progress: Observer = no_progress, pool: Dataset | None = None
) -> Trained:
    """Return what there is to score, and the network with the weights of the checkpoint.

    pool: the samples, where they are open already.

    Classes and statistics are the run's where a run trained it. Else the number of classes is that
    of the data set; of images without classes, the checkpoint's; and images are normalised by
    the statistics of what is opened.

    source: where the checkpoint is, and its configuration. progress: is told of samples read.

    Raises:
        ConfigError, DataError: as for `assemble`; inputs of another shape than the run's; rows of a
            table or texts that are not the run's, whose inputs would be scaled otherwise.
        ModelError: a checkpoint that cannot be read, or of another network.
    """
    config = source.config
    weights = read_weights(source.checkpoint)
    name, options = config.data.name, data_options(config)
    if pool is None:
        pool = datasets.load_to_score(name, config.root, progress=progress, **options)
    _check_like_the_run(source, pool)
    mean, std = source.statistics or statistics(
        config,
        # An older run has not recorded them: those of its pool, which it trained on.
        datasets.load(name, config.root, progress=progress, **options).pool
        if source.run and not source.elsewhere
        else pool,
    )
    known = source.classes or pool.classes
    if config.freeze:
        return _trained_head(source, pool, known, (mean, std), weights, progress)

    def build(classes: int) -> nn.Module:
        return models.build(
            config.model.name,
            num_classes=classes,
            input_shape=tuple(pool.input_shape),
            **config.model.options,
        )

    def task_of(classes: int) -> Task:
        return tasks.build(
            config.task.name,
            num_classes=classes,
            mean=mean,
            std=std,
            classes=known,
            **config.task.options,
        )

    classes = len(known) or trained_classes(build, weights)
    model, device = build(classes or 2), resolve_device(config.device)
    load_weights(model, source.checkpoint)
    model.eval()
    if classes is None:  # a network of one size whatever it is asked for: its outputs tell
        classes = _outputs(model, task_of(2), pool)
    return Trained(pool, task_of(classes), model.to(device), device, tuple(known))


def _trained_head(
    source: Source,
    pool: Dataset,
    known: Sequence[str],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    weights: Mapping[str, torch.Tensor],
    progress: Observer,
) -> Trained:
    """Return the features of `pool` by the frozen network, and the head of the checkpoint.

    Raises:
        ModelError: a network that is not the one whose features the head was trained on.
    """
    config = source.config
    bias = weights.get("bias", weights.get("weight"))
    classes = len(known) or (len(bias) if bias is not None else 2)
    task = tasks.build(
        config.task.name,
        num_classes=classes,
        mean=statistics[0],
        std=statistics[1],
        classes=known,
        **config.task.options,
    )
    network = partial(
        models.build,
        config.model.name,
        num_classes=classes,
        input_shape=tuple(pool.input_shape),
        **config.model.options,
    )
    device = resolve_device(config.device)
    backbone = take_backbone(network, task, device)
    model = backbone.make_head(classes)()
    load_weights(model, source.checkpoint)
    recorded = source.run.config["samples"].get("backbone_sha256") if source.run else None
    probe = source.run.info.get("backbone_probe") if source.run else None
    features = None
    if recorded in (None, backbone.digest):
        features = freeze_dataset(pool, backbone, device, observer=progress)
    if features is None or (probe and not same_summary(probe, features.probe)):
        raise ModelError(
            f"Expected the network {config.model.name!r} to compute what it computed for the run "
            f"in {source.run.path if source.run else ''}, as the head was trained on its features, "
            "but its weights or its code are others. Bring the former ones back."
        )
    return Trained(features, task, model.to(device).eval(), device, tuple(known))


def _check_like_the_run(source: Source, pool: Dataset) -> None:
    """Raise DataError where the network would see other inputs than those it was trained on."""
    if source.run is None:
        return
    info = source.run.info
    shape = tuple(info.get("source_shape", info.get("input_shape", pool.input_shape)))
    if shape != tuple(pool.input_shape):
        raise DataError(
            f"Expected inputs of shape {shape}, which the run was trained on, but those of "
            f"{place_of(pool)} have {tuple(pool.input_shape)}. Give images of that size, or set "
            "data.size."
        )
    ids = source.run.config.get("samples", {}).get("pool_ids_sha256")
    if source.config.data.name in ENCODED and ids not in (None, digest(list(pool.ids))):
        raise DataError(
            f"Expected the samples that the run in {source.run.path} was trained with, as the "
            f"inputs of {source.config.data.name!r} are scaled and encoded by all rows of the "
            f"pool, but {place_of(pool)} holds others: the network would read their numbers "
            "wrongly. Give the run's own file; rows to predict belong into it from the start, "
            "without a label."
        )


def _outputs(model: nn.Module, task: Task, pool: Dataset) -> int:
    """How many logits the model has for a sample, or for a position of it."""
    sample = task.prepare(first_readable(pool))
    try:
        with torch.no_grad():
            return task.logits(model(sample)).shape[1]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"Expected {type(model).__name__} to return logits, (n, classes, ...), for a batch of "
            f"shape {tuple(sample.shape)} but it raised {type(error).__name__}: {error}"
        ) from error


def find_strategy(text: str) -> Strategy:
    """Return the strategy that a text names: a name, or a mapping of `name` and options in YAML.

    Raises:
        ConfigError: text that is neither, an unknown strategy or option.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"Expected the name of a strategy but got {text!r}: {error}.") from error
    options = dict(value) if isinstance(value, dict) else {"name": value}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            "Expected the name of a strategy, or {name: u-herding, temperature: 2}, but got "
            f"{text!r}."
        )
    return strategies.build(name, **options)


def scorers(names: str) -> dict[str, Scorer]:
    """The strategies that have one score a sample, by names with commas between.

    Raises:
        ConfigError: an unknown strategy, or one that chooses without such a score.
    """
    chosen: dict[str, Scorer] = {}
    for name in (name.strip() for name in names.split(",")):
        strategy = strategies.build(name)
        if not isinstance(strategy, TopStrategy):
            able = [n for n, kind in strategies.REGISTRY.items() if issubclass(kind, TopStrategy)]
            raise ConfigError(
                f"Expected strategies that score each sample by itself, {', '.join(able)}, but "
                f"got {name!r}, which chooses a batch as a whole."
            )
        chosen[name] = strategy
    return chosen


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
    return _around(config, reshape(splits) if reshape is not None else splits, progress)


def data_place(config: Config) -> str | None:
    """Return the absolute path of the data set's file or folder; None for one that needs none.

    config: of the run.
    """
    root = datasets.root_of(config.data.name, config.root)
    return None if root is None else str(Path(root).absolute())


def assemble_from_published_sizes(config: Config) -> Setup | None:
    """Return a setup around the published sizes of a data set whose files are not there: for a
    plan.

    Its samples are random. None where the sizes are not known.

    config: what to build.

    Raises:
        ConfigError, ModelError: what does not exist or does not fit together.
    """
    splits = datasets.load_outline(config.data.name, **data_options(config))
    return None if splits is None else _around(config, splits)


def to_plan(config: Config, progress: Observer = no_progress) -> tuple[Setup, str]:
    """Return the setup that `plan` and `estimate` need, and why its data was not opened.

    Where files are missing, and where they would have to be simulated first, the published sizes
    stand in for the data; otherwise the data is opened and the strategies are tried, and the
    second is empty.

    config: what to plan. progress: is told of samples read.

    Raises:
        ConfigError, DataError, ModelError: as for `assemble` and `check_compatible`.
    """
    datasets.check_root(config.root)
    if config.data.name in datasets.SIMULATED:
        outline = assemble_from_published_sizes(config)
        if outline is not None:
            return outline, "Its volumes are simulated when the run begins."
    try:
        splits = datasets.load(
            config.data.name, config.root, progress=progress, **data_options(config)
        )
        return check_compatible(config, _around(config, splits)), ""
    except DataError as error:
        outline = assemble_from_published_sizes(config)
        if outline is None:
            raise
        return outline, str(error)


def _around(config: Config, splits: Splits, compute: Observer | None = None) -> Setup:
    """Build task, network and strategies around a data set.

    compute: is told of the features of a frozen network that are computed; None computes none but
    those of samples that are looked at.
    """
    pool = splits.pool
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
    chosen: dict[str, Strategy] = {
        choice.label: strategies.build(choice.name, **choice.options)
        for choice in config.strategies
    }
    if not config.freeze:
        return Setup(splits, task, model, chosen)
    device = resolve_device(config.device)
    frozen = freeze(splits, task, model, device=device, compute=False)
    setup = Setup(frozen.splits, task, frozen.head, chosen, backbone=frozen.backbone)
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


def check_compatible(config: Config, setup: Setup) -> Setup:
    """Return the same setup, once every strategy was tried on a sample with an untrained network.

    Of `strategies: all`, those that cannot be served are left out.

    config: of the comparison. setup: what `assemble` made of it.

    Raises:
        ConfigError: strategies that were asked for by name and cannot be served, with the reasons;
            one with a cost budget beside other runs.
        DataError: no sample can be read.
    """
    model, sample = setup.model(), setup.task.prepare(first_readable(setup.splits.pool))
    setup.task.check(model, sample)
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
    kept = {label: s for label, s in setup.strategies.items() if label not in reasons}
    by_cost = [
        label
        for label, strategy in kept.items()
        if isinstance(strategy, CostBudgeted) and strategy.cost_budget is not None
    ]
    if by_cost and len(kept) * len(config.seeds) > 1:
        raise ConfigError(
            f"strategies.{by_cost[0]}: expected to run alone and under one seed, since its "
            "`cost_budget` decides how many labels each cycle has, and curves compare at equal "
            f"numbers, but got {len(kept)} strategies and {len(config.seeds)} seeds. Take "
            "`upslope run --seeds [0]`, one folder a run, or leave `cost_budget` out."
        )
    return replace(setup, strategies=kept, left_out=reasons)


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
    config: Config, setup: Setup, begun: RunResult | None = None, initial: int | None = None
) -> Plan:
    """Return the sizes, budgets and steps of a comparison; trains nothing.

    begun: a run that is gone on with, whose labels so far may be other than settings say now.
    initial: labels that a run begins with, where they are those of an earlier one.

    config, setup: of the comparison.

    Raises:
        SelectionError: more labels asked for than the pool holds.
    """
    settings, size = config.experiment, len(setup.splits.pool)
    budgets, candidates = _budgets(settings, size, begun, initial)
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


def without_weights(model: Callable[[], nn.Module]) -> nn.Module:
    """The network in shapes alone, on the device "meta": nothing is allocated or initialised."""
    try:
        with torch.device("meta"):
            return model().to("meta")
    except (RuntimeError, UpslopeError):  # one that reads numbers while it is built
        return model().to("meta")


def _budgets(
    settings: ExperimentSettings, size: int, begun: RunResult | None, taken: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first = size if begun is None else first_size(begun.changes, size)
    initial = amount(settings.initial, first, "initial") if taken is None else taken
    step = amount(settings.budget, first, "budget")
    done = [cycle.n_labelled for cycle in begun.cycles] if begun is not None else []
    asked = len(begun.labels) + len(begun.pending) if begun is not None else 0
    if begun is not None and len(done) < settings.cycles and asked > max([0, *done]):
        done.append(asked)
    points = [*done] or [initial]
    while len(points) < settings.cycles:
        points.append(points[-1] + step)
    budgets = tuple(points)
    if budgets[-1] > size and not done:
        raise SelectionError(
            f"Expected the last cycle to need at most the {size} labels of the pool but {initial} "
            f"and {settings.cycles - 1} times {step} are {budgets[-1]}. Lower `experiment.cycles` "
            "or `experiment.budget`."
        )
    most = candidate_count(settings.candidates, step)
    left = (max(0, size - labels) for labels in budgets[:-1])
    return budgets, tuple(n if most is None else min(n, most) for n in left)
