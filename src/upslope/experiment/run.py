"""Algorithm 1 of the paper, one recorded step at a time.

    with Experiment("runs/mine", splits=splits, task=task, model=factory, strategy=Margin()) as run:
        while ids := run.ask():            # trains, scores and chooses as far as it can
            run.tell({i: label(i) for i in ids})

Every step is on the disk before the next begins. A process killed at any moment goes on, when the
same call is made again, and ends with the same selections, weights and figures, on the CPU bit
for bit (with the same number of threads: they decide the order of sums).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from upslope.batches import resolve_device
from upslope.datasets.base import Splits
from upslope.datasets.checks import check_splits
from upslope.datasets.readable import first_readable
from upslope.display import watching_unless_observed
from upslope.errors import ConfigError, DataError, RunError, SelectionError
from upslope.experiment.answers import AnswerCounts, events_of, has_label, taken_back
from upslope.experiment.changes import (
    Opening,
    backbone_of,
    first_size,
    probe_of,
    source_shape_of,
    with_statistics,
)
from upslope.experiment.checks import check_total, described, positions
from upslope.experiment.earlier_labels import EarlierLabels
from upslope.experiment.environment import differing, environment
from upslope.experiment.first_model_cache import FirstModelCache
from upslope.experiment.labels import oracle
from upslope.experiment.model_store import ModelStore
from upslope.experiment.own_training import Trainer, name_of
from upslope.experiment.settings import ExperimentSettings, amount
from upslope.experiment.start import start_strategy
from upslope.experiment.steps import Steps
from upslope.files import json_digest
from upslope.ledger import Event, Ledger, RunResult, State, read_run
from upslope.ledger.store import has_begun
from upslope.models import without_lazy_layers
from upslope.pool import InitialSelector, SeesLabels, Strategy
from upslope.progress import Observer, Stop, stop_on_signals
from upslope.tasks.base import Normalises, Task
from upslope.training import TrainingSettings, auxiliary_module, trains_along


class Experiment:
    """One strategy under one seed, in one run directory.

    model: a factory of a fresh network; its initial weights come from the seed. config: whatever
    else a reader of the run should know (data set, model and their options). A run is only gone
    on with under the same settings, but `cycles` and `budget` may be larger than before, and the
    pool may have more samples: `changes` says what this opening changed. observer: is told of
    progress; without one, it is shown in a terminal or a notebook, unless `progress` is False.
    shared: a folder where runs of one seed share their first model. root: where the data lie, for
    those who use the trained network; recorded when the run begins, and never compared. stop:
    a request to stop that somebody else owns; otherwise Ctrl-C and SIGTERM make one.

    trainer: a training loop of your own, `fit(model, labelled, context) -> model`, in place of ours
    and of `training`; a run begun with one is gone on with under the same name of it. See
    `upslope.experiment.own_training`, and docs/own-training.md for what cannot be promised then.

    The test set may be empty: then no figures on it are recorded, and those on the labelled set
    alone tell how a cycle went.

    Nothing after the last training is selected: the last cycle's model is for evaluation.

    path: the run directory. splits: pool, test set and, if any, validation set. task: the losses
    and figures. device: "auto", "cpu", "cuda" ...

    Raises:
        RunError: the directory is in use, of another configuration, damaged, or the disk is full.
        SelectionError: the budgets do not fit the pool.
        ConfigError: `splits` of another kind.
        DataError: an empty pool, or ids that are not distinct.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from upslope import datasets, models, strategies, tasks
        >>> splits = datasets.load("digits", limit=40, test_limit=20)
        >>> mean, std = datasets.statistics(splits.pool)
        >>> task = tasks.build("classification", num_classes=10, mean=mean, std=std)
        >>> def network():
        ...     return models.build("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=4)
        >>> settings = ExperimentSettings(initial=10, budget=5, cycles=2)
        >>> training = TrainingSettings(epochs=1)
        >>> digits = splits.pool.targets(range(40)).tolist()
        >>> labels = dict(zip(splits.pool.ids, digits, strict=True))
        >>> with TemporaryDirectory() as folder:
        ...     with Experiment(
        ...         folder, splits=splits, task=task, model=network, progress=False,
        ...         strategy=strategies.build("margin"), settings=settings, training=training,
        ...     ) as run:
        ...         while ids := run.ask():
        ...             run.tell({i: labels[i] for i in ids})
        ...         [cycle.n_labelled for cycle in run.result().cycles]
        [10, 15]
    """

    def __init__(
        self,
        path: Path | str,
        *,
        splits: Splits,
        task: Task,
        model: Callable[[], nn.Module],
        strategy: Strategy,
        settings: ExperimentSettings | None = None,
        training: TrainingSettings | None = None,
        trainer: Trainer | None = None,
        config: Mapping[str, Any] | None = None,
        device: torch.device | str = "auto",
        observer: Observer | None = None,
        progress: bool = True,
        shared: Path | None = None,
        root: str | None = None,
        stop: Stop | None = None,
    ) -> None:
        check_splits(splits)
        self.path = Path(path)
        self.splits, self.task, self.strategy = splits, task, strategy
        self.settings = settings or ExperimentSettings()
        self.training = training or TrainingSettings()
        if trainer is not None:
            _check_trainer(trainer, training, strategy)
        self.device = resolve_device(device)
        self._stop, self._observer, self._progress = stop, observer, progress
        pool = splits.pool
        position = positions(pool.ids)
        own_start = strategy.start if isinstance(strategy, InitialSelector) else None
        start = start_strategy(self.settings.start, pool.input_shape)
        if own_start is not None and start is not None:
            raise ConfigError(
                f"Expected one way to choose the initial set but {strategy.name} has its own and "
                f"`experiment.start` is {self.settings.start!r}. Leave one of them out."
            )
        if not has_begun(self.path):
            # Told before a ledger is written that could never be gone on with.
            self._counts(len(pool), check=True)
        weights = ModelStore(
            self.path,
            without_lazy_layers(model, lambda: task.prepare(first_readable(pool))),
            self.settings.seed,
            self.training,
            self.device,
            auxiliary_module(strategy),
            keep_all=self.settings.keep_models == "all",
        )
        common = {
            **(config or {}),
            "experiment": self.settings.record(),
            "training": self.training.record()
            if trainer is None
            else {"trainer": name_of(trainer)},
            "samples": {
                "pool": len(pool),
                "pool_ids_sha256": json_digest(list(pool.ids)),
                "test": len(splits.test),
                "validation": len(splits.validation) if splits.validation else 0,
                **backbone_of(pool),
            },
        }
        opening = Opening(self.path, pool, self.settings)
        here = environment(self.device)
        ledger = Ledger(
            self.path,
            config={**common, "strategy": described(strategy)},
            environment=here,
            info={
                "strategy": strategy.name,
                "seed": self.settings.seed,
                "primary": task.primary,
                "cycles": self.settings.cycles,
                "data": pool.name,
                "classes": list(pool.classes),
                "input_shape": list(pool.input_shape),
                **source_shape_of(pool),
                **probe_of(pool),
                "mean": list(task.mean if isinstance(task, Normalises) else ()),
                "std": list(task.std if isinstance(task, Normalises) else ()),
                "pool": len(pool),
                "test": len(splits.test),
                "root": root,
            },
            reconcile=opening.reconcile,
        )
        self.changes = opening.changes
        self.task = with_statistics(task, ledger.meta["info"], ledger.state)
        initial, budget = self._counts(first_size(ledger.state.changes, len(pool)))
        self._steps = Steps(
            self.path,
            splits,
            self.task,
            strategy,
            own_start or start,
            self.settings,
            self.training,
            initial,
            budget,
            common,
            position,
            self.device,
            ledger,
            weights,
            FirstModelCache(shared) if shared and not (weights.companion or own_start) else None,
            trainer=trainer,
        )
        try:
            self._note_sitting(here)
        except BaseException:
            self.close()
            raise
        weights.tidy(self.state.cycle if self.state.trained else None)
        if shared:
            FirstModelCache(shared).tidy()

    def _note_sitting(self, here: Mapping[str, Any]) -> None:
        """Record and tell where the run is gone on with elsewhere than before."""
        ledger = self._steps.ledger
        before = ledger.state.sittings[-1] if ledger.state.sittings else ledger.meta["environment"]
        if self.finished or not (changed := differing(before, here)):
            return
        ledger.record(Event("sitting", self.state.cycle, {"environment": dict(here)}))
        warnings.warn(
            f"The run in {self.path} is gone on with under other circumstances than before: "
            f"{'; '.join(changed)}. From here on, the last bits of its figures, and now and then a "
            "selection, may differ from those of a run without the change.",
            stacklevel=3,
        )

    def _counts(self, size: int, *, check: bool = False) -> tuple[int, int]:
        """Samples of the initial set and of each later cycle, for a pool of `size`."""
        cycles = self.settings.cycles
        initial = amount(self.settings.initial, size, "initial")
        budget = amount(self.settings.budget, size, "budget") if cycles > 1 else 0
        if check:
            check_total(initial, budget, cycles, size)
        return initial, budget

    @property
    def state(self) -> State:
        """Return where the run stands, as the ledger's events add up."""
        return self._steps.state

    @property
    def finished(self) -> bool:
        """Every budget point has been evaluated."""
        return self._steps.finished

    def ask(self) -> tuple[str, ...]:
        """The ids that wait for a label, in order of choice; empty once the run is finished.

        Trains, evaluates, scores and selects first, as far as that can go without a label; asks
        others for those that were passed.

        Raises:
            ConfigError: a strategy that sees labels before they are given.
            UpslopeError: a step failed; the ones before it are recorded.
            Interrupted: a stop was requested; the same call goes on.
        """
        if isinstance(self.strategy, SeesLabels) and self.strategy.sees_labels:
            raise ConfigError(
                "Expected a strategy that sees no label before it is given but "
                f"{self.strategy.name} does: it shows what could be won at most, in "
                "simulations (`Experiment.run`, `compare`). Take another where people label."
            )
        with self._working() as stop:
            self._steps.until_asked(stop)
        return self.state.pending

    def tell(self, labels: Mapping[str, Any]) -> None:
        """Record the answers for some or all of the ids asked, or other answers for earlier ones.

        labels: id -> a class by its name, or by its number where no class is named by another
        number; for label sets, the names of the labels present, or 0 and 1 for each; for numbers,
        one or a sequence of them; a mask, (h, w) positions of classes as an array or the path of a
        file, where the data set does not read masks from files of its own. None: as the data set
        says; where it has no label, the sample is passed, as `skip` does, unless its label is a
        mask, which must be drawn first.

        The same answer again changes nothing. Another answer corrects the one before, which the
        ledger keeps: it counts from the next training on, and a training in progress begins anew.
        So does the answer for a sample that was passed. Where another was asked in its place, the
        label is one more than the cycle's count.

        Raises:
            DataError: an id that was not asked; an answer that is no label. Then nothing of this
                call is recorded.
        """
        self._record(labels, {})

    def skip(self, ids: Iterable[str], reason: str = "") -> None:
        """Pass samples that cannot or should not be labelled; `ask` asks others in their place.

        They are not asked again, unless `take_back` returns them to the pool; `tell` still takes
        an answer for them. ids: of samples
        that wait for a label; a mapping gives each its own reason.

        Raises:
            DataError: an id that does not wait for a label; nothing of this call is recorded.
        """
        reasons = dict(ids) if isinstance(ids, Mapping) else dict.fromkeys(_listed(ids), reason)
        self._record({}, reasons)

    def take_back(self, ids: Iterable[str]) -> None:
        """Take back answers: the samples wait for a label again, and the ledger keeps the old one.

        Of samples that were passed: they wait again, or, where others were asked in their place,
        are in the pool again and may be asked. What was trained and chosen stays as it was.

        Raises:
            DataError: an id without an answer; nothing of this call is recorded.
        """
        event = taken_back(self.state, self._steps.position, _listed(ids))
        self._steps.weights.checkpoint.unlink(missing_ok=True)
        self._steps.ledger.record(event)

    def answer(
        self,
        labels: Mapping[str, Any],
        passed: Mapping[str, str],
        withdrawn: Sequence[str] = (),
    ) -> AnswerCounts:
        """Record answers and passes, all or none: `tell`, `skip` and `take_back` in one.

        passed: id -> reason. withdrawn: ids whose answers are taken back. Returns how many there
        were of each.

        labels: as of `tell`.

        Raises:
            DataError: as `tell`, `skip` and `take_back` do.
        """
        return self._record(labels, passed, withdrawn)

    def begin_with(self, earlier: EarlierLabels) -> None:
        """Begin with the labels of an earlier run instead of an initial set; nothing is asked.

        Once begun, the same call changes nothing.

        Raises:
            ConfigError: `experiment.start` chooses an initial set too.
            RunError: the run has begun otherwise.
            SelectionError: more labels than the pool has, with those of later cycles.
        """
        steps, source = self._steps, str(earlier.run)
        if self.state.started:
            if self.state.labels_from != source:
                raise RunError(
                    f"Expected the run in {self.path} to have begun with the labels of {source} "
                    f"but it began with {self.state.labels_from or 'an initial set'}. Leave "
                    "--labels-from out to go on with it, or choose another folder."
                )
            return
        if self.settings.start != "random":
            raise ConfigError(
                "Expected one way to the first labels but got those of an earlier run and "
                f"`experiment.start`, {self.settings.start!r}. Leave one of them out."
            )
        left = len(self.splits.pool) - len(earlier.labels)
        if (more := (self.settings.cycles - 1) * steps.budget) > left:
            raise SelectionError(
                f"Expected `experiment.cycles` to ask for at most the {left:,} samples that are "
                f"left beside the {len(earlier.labels):,} labels taken over but it is {more:,}. "
                "Lower `experiment.budget` or `experiment.cycles`."
            )
        steps.ledger.record(
            Event("asked", 0, {"ids": list(earlier.labels), "labels_from": source}),
            Event("labelled", 0, {"labels": dict(earlier.labels)}),
        )

    def own_labels(self, ids: Iterable[str] | None = None) -> dict[str, None]:
        """Return the ids that have a label in the data set, as `tell` takes them.

        ids: of the pool; by default those that wait for a label.
        """
        position, pool = self._steps.position, self.splits.pool
        asked = self.state.pending if ids is None else ids
        return {i: None for i in asked if has_label(pool, position[i])}

    def run(self) -> RunResult:
        """Return the run at its end, with the data set's own labels for an oracle. Raises as `ask`
        does.
        """
        self._steps.simulated = True
        with self._working() as stop:
            while not self.finished:
                if self.state.pending:
                    answer = oracle(self.splits.pool, self._steps.position, self.state.pending)
                    event = Event("labelled", self.state.cycle, {"labels": answer})
                    self._steps.ledger.record(event)
                else:
                    self._steps.advance(stop)
        return self.result()

    def result(self) -> RunResult:
        """The run so far, read back from its directory."""
        return read_run(self.path)

    def model(self) -> nn.Module:
        """The model trained last, on the device, in eval mode.

        Raises:
            DataError: nothing is trained yet.
        """
        state = self.state
        if state.trained is None and not state.cycles:
            raise DataError("Expected a trained model but none is yet: `ask` and `tell` first.")
        # Once more labels are asked, the cycle is theirs, and its model is not trained yet.
        with self._working() as stop:
            return self._steps.model(state.cycle - (state.trained is None), stop).eval()

    def close(self) -> None:
        """Let other processes at the run directory."""
        self._steps.ledger.close()

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _record(
        self,
        labels: Mapping[str, Any],
        passed: Mapping[str, str],
        withdrawn: Sequence[str] = (),
    ) -> AnswerCounts:
        steps = self._steps
        events = events_of(
            self.splits.pool, self.task, steps.position, self.state, labels, passed, withdrawn
        )
        if any(event.kind in ("corrected", "taken_back") for event in events):
            # A training in progress had other labels; its checkpoint does not tell.
            steps.weights.checkpoint.unlink(missing_ok=True)
        if events:
            steps.ledger.record(*events)
        return AnswerCounts.of(events)

    @contextmanager
    def _working(self) -> Iterator[Stop]:
        """Progress shown, and Ctrl-C a request to stop, while steps are taken."""
        shown = watching_unless_observed(self._observer, 1, progress=self._progress)
        with shown as self._steps.observer, ExitStack() as stack:
            yield self._stop or stack.enter_context(stop_on_signals())


def _listed(ids: Iterable[str]) -> list[str]:
    """The ids; one alone is meant as one, not as its letters."""
    return [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))


def _check_trainer(trainer: Trainer, training: TrainingSettings | None, strategy: Strategy) -> None:
    """Raise ConfigError for a trainer beside what only our own loop can do."""
    if not callable(trainer):
        raise ConfigError(
            "Expected `trainer` to be a function fit(model, labelled, context) -> model but got "
            f"{type(trainer).__name__}."
        )
    if training is not None:
        raise ConfigError(
            "Expected one of `training`, settings of the loop of Upslope, and `trainer`, a loop of "
            "your own, but got both. Leave one out."
        )
    if trains_along(strategy):
        raise ConfigError(
            f"Expected a strategy that any training serves but {strategy.name} trains a module of "
            "its own along with the network, in the loop of Upslope. Leave `trainer` out, or take "
            "another strategy."
        )
