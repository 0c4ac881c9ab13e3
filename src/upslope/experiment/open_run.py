"""The opening of a run: its ledger is opened and compared, and its steps are made ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope.datasets.readable import first_readable
from upslope.datasets.splits import Splits
from upslope.experiment.changes import Opening, first_size, with_statistics
from upslope.experiment.checks import check_total, positions
from upslope.experiment.context import RunContext
from upslope.experiment.cycle_models import CycleModels
from upslope.experiment.environment import environment, last_environment, note_sitting
from upslope.experiment.first_model_cache import FirstModelCache
from upslope.experiment.model_store import ModelStore
from upslope.experiment.own_training import Trainer
from upslope.experiment.record import RunRecord
from upslope.experiment.settings import ExperimentSettings, amount
from upslope.experiment.start import initial_selector
from upslope.experiment.steps import Steps
from upslope.ledger import Change, Event, Ledger
from upslope.ledger.store import has_begun
from upslope.models import without_lazy_layers
from upslope.network_record import describe_lastingly, is_other_network
from upslope.pool import Strategy
from upslope.tasks.base import Task
from upslope.training import TrainingSettings, auxiliary_module

_OF_A_MODEL = (
    "network", "task", "mean", "std", "input_type", "probe",
    "test_ids_sha256", "validation_ids_sha256",
)  # fmt: skip
"""Facts of a run that its models and their figures depend on, and that no configuration names in
Python."""


@dataclass(frozen=True)
class RunParts:
    """All that a run is made of, checked, as `Experiment` takes it."""

    path: Path
    splits: Splits
    task: Task
    model: Callable[[], nn.Module]
    strategy: Strategy
    settings: ExperimentSettings
    training: TrainingSettings
    trainer: Trainer | None
    config: Mapping[str, Any]
    device: torch.device
    shared: Path | None
    root: str | None


@dataclass(frozen=True)
class OpenRun:
    """A run whose ledger is open. task: with the statistics that the run began with. steps: of
    the run. changes: what this opening changed."""

    task: Task
    steps: Steps
    changes: list[Change]


def open_run(parts: RunParts) -> OpenRun:
    """Open the ledger of a run, or begin one, and return the run with its steps.

    Raises:
        RunError: the directory is in use, of another configuration, or damaged.
        SelectionError: the budgets do not fit the pool.
        DataError: ids that are not distinct.
    """
    pool = parts.splits.pool
    position = positions(pool.ids)
    start, shares_start = initial_selector(parts.strategy, parts.settings.start, pool.input_shape)
    is_new = not has_begun(parts.path)
    if is_new:
        # Told before a ledger is written that could never be gone on with.
        _check_counts(parts.settings, len(pool))
    weights = _model_store(parts)
    record = RunRecord(
        parts.splits,
        parts.task,
        parts.strategy,
        parts.settings,
        parts.training,
        parts.trainer,
        parts.config,
        parts.root,
        describe_lastingly(weights.build, weights.sample) if is_new else {},
    )
    opening = Opening(parts.path, parts.splits, parts.task, parts.settings, record.given)
    here = environment(parts.device)
    ledger = Ledger(
        parts.path,
        config=record.config,
        environment=here,
        info=record.info,
        reconcile=opening.reconcile,
    )
    try:
        if not is_new:
            _take_other_network(ledger, weights)
        weights.network, weights.is_compared = ledger.network, is_new
        context = _context(parts, position, ledger)
        initial, budget = _counts(parts.settings, first_size(ledger.state.changes, len(pool)))
        cache = FirstModelCache(parts.shared) if parts.shared else None
        steps = Steps(
            context,
            CycleModels(context, weights),
            parts.strategy,
            start,
            initial,
            budget,
            _shared_by_strategies(record, ledger),
            cache if shares_start and not weights.companion else None,
        )
        if not steps.finished:
            note_sitting(ledger, parts.path, here)
        weights.tidy(steps.state.cycle if steps.state.trained else None)
        if cache:
            cache.tidy()
    except BaseException:  # of any kind: others must get at the directory
        ledger.close()
        raise
    return OpenRun(context.task, steps, opening.changes)


def _context(parts: RunParts, position: Mapping[str, int], ledger: Ledger) -> RunContext:
    return RunContext(
        parts.path,
        parts.splits,
        with_statistics(parts.task, ledger.meta["info"], ledger.state),
        parts.settings,
        parts.training,
        parts.trainer,
        position,
        parts.device,
        ledger,
    )


def _model_store(parts: RunParts) -> ModelStore:
    def sample() -> Tensor:
        return parts.task.prepare(first_readable(parts.splits.pool))

    return ModelStore(
        parts.path,
        without_lazy_layers(parts.model, sample),
        parts.settings.seed,
        parts.training,
        parts.device,
        auxiliary_module(parts.strategy),
        keep_all=parts.settings.keep_models == "all",
        sample=sample,
    )


def _take_other_network(ledger: Ledger, weights: ModelStore) -> None:
    """Record the network given where it is not the recorded one and nothing is trained yet.

    A training that failed is mended so, beside labels that were given for it.
    """
    state = ledger.state
    if state.trained is not None or state.cycles or weights.checkpoint.exists():
        return
    network = describe_lastingly(weights.build, weights.sample)
    if is_other_network(ledger.network, network):
        body = {"environment": last_environment(ledger), "network": network}
        ledger.record(Event("sitting", state.cycle, body))


def _shared_by_strategies(record: RunRecord, ledger: Ledger) -> dict[str, Any]:
    """What the first model of a seed depends on, beside its labels."""
    info = {**ledger.meta["info"], "network": ledger.network}
    objects = {key: info[key] for key in _OF_A_MODEL if key in info}
    return {**record.common, **objects, "loop": record.given["trainer"]}


def _counts(settings: ExperimentSettings, size: int) -> tuple[int, int]:
    """Samples of the initial set and of each later cycle, for a pool of `size`."""
    initial = amount(settings.initial, size, "initial")
    return initial, amount(settings.budget, size, "budget") if settings.cycles > 1 else 0


def _check_counts(settings: ExperimentSettings, size: int) -> None:
    initial, budget = _counts(settings, size)
    check_total(initial, budget, settings.cycles, size)
