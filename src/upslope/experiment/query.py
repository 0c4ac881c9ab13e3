"""Choose what to label next with a trained network and a pool: no run, no configuration.

    chosen = upslope.query(model, images, budget=50, strategy="badge")
    images[list(chosen.positions)]

The choice is the one that an `Experiment` makes at a selection with the same network, seed,
candidates and labelled set: both run `Selector.choose` with the same random numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, SupportsIndex

import torch
from torch import nn

from upslope import strategies
from upslope.batches import resolve_device
from upslope.datasets.array_form import Layout
from upslope.datasets.base import Dataset
from upslope.datasets.pools import as_pool
from upslope.datasets.readable import first_readable
from upslope.display import watching_unless_observed
from upslope.errors import ConfigError, SelectionError
from upslope.experiment.checks import check_fit, positions, whole_number
from upslope.experiment.query_labels import PoolWithLabels, place_of, read_labelled
from upslope.experiment.query_task import task_for
from upslope.experiment.sampling import candidates as draw_candidates
from upslope.experiment.selection import Selector
from upslope.experiment.settings import ExperimentSettings, candidate_count
from upslope.memory import memory_errors
from upslope.pool import CostBudgeted, PoolView, Selection, Strategy
from upslope.progress import Observer, Stop
from upslope.scoring.input_types import check_standardised
from upslope.scoring.signals import OnCorrupt
from upslope.tasks.base import Task
from upslope.training import trains_along

_LEARNT_FROM_LABELS = ("committee", "model-change", "vaal", "sraal")
"""Signals whose networks are random where nothing is labelled."""


@dataclass(frozen=True)
class Query:
    """The samples that a strategy chose, in order of choice.

    ids: as the pool has them; pool-00000 and so on where it has none. positions: their places in
    the pool. scores: the acquisition score of each, None where the strategy has no such number.
    candidates: places of all samples that were scored; candidate_scores: the score of each of
    these, or None. skipped: ids that could not be read. notes: figures of the choice, such as the
    radius of a cover.
    """

    ids: tuple[str, ...]
    positions: tuple[int, ...]
    scores: tuple[float, ...] | None
    candidates: tuple[int, ...] = field(repr=False)
    candidate_scores: tuple[float, ...] | None = field(repr=False)
    skipped: tuple[str, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


UNFITTED_HERDING = MappingProxyType({"name": "u-herding", "temperature": 1.0})
"""UHerding as far as it goes without a training that could be repeated to fit its temperature."""


def query(
    model: nn.Module,
    pool: Any,
    budget: int = 50,
    strategy: str | Mapping[str, Any] | Strategy = UNFITTED_HERDING,
    *,
    labelled: Any = None,
    without: Collection[str | int] = (),
    task: str | Task | None = None,
    seed: int = 0,
    cycle: int = 0,
    candidates: int | str = "all",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout = "auto",
    size: int | None = None,
    batch_size: int = 256,
    on_corrupt: OnCorrupt = "fail",
    device: torch.device | str | None = None,
    observer: Observer | None = None,
    progress: bool = True,
) -> Query:
    """Return the samples of a pool that are most worth a label, chosen with a trained network.

    The network is left as it was: mode, weights, hooks, BatchNorm statistics.

    model: trained; returns logits, or an object that has them as `.logits`. pool: (n, ...) array or
    tensor of what the model takes; a data set of torch, torchvision or Hugging Face with
    `len(data)` and `data[i]`, whose own targets are not looked at; the path of a folder of images;
    a data set of Upslope, or `Splits`, of which the pool is taken.
    budget: how many to choose. strategy: a name of `upslope list`, a mapping of `name` and options,
    or a strategy; u-herding at temperature 1 if not given.
    labelled: what is labelled already, where the strategy looks at it: a mapping of
    ids or positions in the pool to classes (by name or number) or whatever `tell` takes; ids or
    positions alone; or samples beside the pool, (inputs, targets) or a data set of torch. None:
    nothing is. Labelled samples of the pool are not chosen. without: ids or positions that are not
    to be chosen either, as those that nobody could label.
    task: "classification" where not given, "segmentation", "multi-label", "regression" or
    "text-classification"; or a task. seed, cycle: of the random numbers; those of an experiment's
    selection after its training number `cycle`, from 0. candidates: samples to score at random,
    "all", a multiple of the budget such as "10x", or a count. mean, std: one per channel, that
    images of 0..255 are normalised by once they are scaled to 0..1, as in training. layout, size:
    as for `Splits.from_torch`; size also for a folder. batch_size: samples scored together at
    most. on_corrupt: "skip" leaves out samples that cannot be read. device: where to compute; where
    the model is, if not given. observer, progress: as for `Experiment`.

    Raises:
        ConfigError: arguments of another kind, or that do not go together; a strategy that trains
            along with the network, as ll4al does.
        ModelError: a network that this strategy cannot score with, or that returns no logits.
        DataError: samples that cannot be read; answers that are no labels.
        SelectionError: a budget above the unlabelled samples; scores that are not finite.
    """
    _check_model(model)
    budget, cycle = whole_number("budget", budget, "budget=50"), _cycle(cycle)
    chooser = _strategy(strategy)
    where = _device_for(model, device)
    pool_data = as_pool(pool, layout=layout, size=size)
    task = task_for(model, first_readable(pool_data).to(where), task, pool_data.classes, mean, std)
    check_standardised(task, pool_data)
    answers = read_labelled(pool_data, labelled, task, layout, size)
    _check_network(model, task, chooser, pool_data, where)
    _check_labelled(chooser, answers)
    settings = ExperimentSettings(seed=seed, score_batch=batch_size, on_corrupt=on_corrupt)
    places = {*answers.positions, *(place_of(key, positions(pool_data.ids)) for key in without)}
    unlabelled = [i for i in range(len(pool_data)) if i not in places]
    _check_budget(chooser, budget, len(unlabelled))
    if isinstance(candidates, SupportsIndex) and not isinstance(candidates, bool):
        candidates = operator.index(candidates)  # a whole number of NumPy or torch
    count = candidate_count(candidates, budget)
    candidate_places = draw_candidates(
        unlabelled, count, len(pool_data), seed=settings.seed, cycle=cycle
    )
    query_observer = watching_unless_observed(observer, 1, progress=progress)
    with query_observer as watcher, memory_errors():
        view, selection, passed_ids = Selector(
            chooser, task, answers.samples, settings, where, watcher, Stop()
        ).choose(
            budget,
            cycle,
            model,
            candidate_places,
            unlabelled,
            answers.labelled_set(),
            answers.label_tensor(),
        )
    return _query_of(pool_data, view, selection, passed_ids)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"Expected `model` to be a torch.nn.Module but got {type(model).__name__}. With "
            "posteriors and features in arrays, take the functions of upslope.functional."
        )


def _cycle(cycle: int) -> int:
    """The number of a cycle, from 0."""
    cycle = whole_number("cycle", cycle, "cycle=0")
    if cycle < 0:
        raise ConfigError(
            f"Expected `cycle`, counted from 0, but got {cycle}. Give that of the selection, or "
            "leave it out."
        )
    return cycle


def _check_network(
    model: nn.Module, task: Task, strategy: Strategy, pool: Dataset, device: torch.device
) -> None:
    """Raise ModelError unless the network returns what the task and the strategy read."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        sample = task.prepare(first_readable(pool).to(device))
        task.check(model, sample)
        check_fit(strategy, model, task, sample)


def _check_labelled(strategy: Strategy, answers: PoolWithLabels) -> None:
    """Raise SelectionError where a strategy learns from labels and there are none."""
    if not answers.positions and any(need.name in _LEARNT_FROM_LABELS for need in strategy.needs):
        raise SelectionError(
            f"Expected `labelled` for {strategy.name}, whose networks learn from labelled samples, "
            "but got none. Give some, or take another strategy."
        )


def _check_budget(strategy: Strategy, budget: int, left: int) -> None:
    """Raise SelectionError unless there are so many unlabelled samples; a cost has no count."""
    by_cost = isinstance(strategy, CostBudgeted) and strategy.cost_budget is not None
    if not by_cost and not 1 <= budget <= left:
        raise SelectionError(
            f"Expected a budget between 1 and the {left:,} unlabelled samples of the "
            f"pool but got {budget}. Lower the budget, or give a larger pool."
        )


def _query_of(
    pool: Dataset, view: PoolView, selection: Selection, passed_ids: Sequence[str]
) -> Query:
    place = {id_: i for i, id_ in enumerate(pool.ids)}
    scores = None if selection.scores is None else tuple(selection.scores.tolist())
    score_of = dict(zip(view.candidates, scores or (), strict=False))
    return Query(
        selection.ids,
        tuple(place[id_] for id_ in selection.ids),
        None if scores is None else tuple(score_of[id_] for id_ in selection.ids),
        tuple(place[id_] for id_ in view.candidates),
        scores,
        tuple(passed_ids),
        dict(selection.notes),
    )


def _strategy(name_or_strategy: str | Mapping[str, Any] | Strategy) -> Strategy:
    """Return the strategy meant.

    Raises:
        ConfigError: no such strategy; one that needs what was trained along with the network.
    """
    if isinstance(name_or_strategy, str):
        strategy_built: Any = strategies.build(name_or_strategy)
    elif isinstance(name_or_strategy, Mapping):
        options = dict(name_or_strategy)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(
                f"Expected `name`, a strategy, in `strategy` but got {dict(name_or_strategy)}."
            )
        strategy_built = strategies.build(name, **options)
    elif isinstance(name_or_strategy, Strategy):
        strategy_built = name_or_strategy
    else:
        raise ConfigError(
            "Expected `strategy` to be a name, a mapping of name and options, or a strategy but "
            f"got {type(name_or_strategy).__name__}."
        )
    strategy: Strategy = strategy_built
    if trains_along(strategy_built):
        raise ConfigError(
            f"Expected a strategy that a trained network alone can serve but {strategy.name} needs "
            "what is trained along with the network. Run it in an Experiment, or take another."
        )
    return strategy


def _device_for(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Where to compute, which is where the model is.

    Raises:
        ConfigError: the model is elsewhere.
    """
    where = _device_of(model) if device is None else resolve_device(device)
    if device is not None and _place(where) != _place(_device_of(model)):
        raise ConfigError(
            f"Expected the model to be on {where} but it is on {_device_of(model)}. Move it first: "
            f"model.to({str(where)!r})."
        )
    return where


def _place(device: torch.device) -> tuple[str, int]:
    """What a device is, however it is named: `mps` is `mps:0`, as weights there say."""
    return device.type, device.index or 0


def _device_of(model: nn.Module) -> torch.device:
    """Where the model's first weight is; the CPU for a model without weights."""
    tensors = (tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
