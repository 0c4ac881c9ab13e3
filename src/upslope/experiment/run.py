"""Algorithm 1 of the paper, one recorded step at a time.

    with Experiment("runs/mine", splits=splits, task=task, model=factory, strategy=Margin()) as run:
        while ids := run.ask():            # trains, scores and chooses as far as it can
            run.tell({i: label(i) for i in ids})

Every step is on the disk before the next begins. A process killed at any moment goes on, when the
same call is made again, and ends with the same selections, weights and figures, on the CPU bit
for bit (with the same number of threads: they decide the order of sums).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from upslope.batches import resolve_device
from upslope.datasets.checks import check_splits
from upslope.datasets.splits import Splits
from upslope.display import watching_unless_observed
from upslope.errors import ConfigError, DataError
from upslope.experiment.answers import AnswerCounts, events_of, has_label, taken_back
from upslope.experiment.changed_labels import warn_of_changed_labels
from upslope.experiment.checks import check_classes, check_factory, check_targets
from upslope.experiment.earlier_labels import EarlierLabels
from upslope.experiment.labels import oracle_body
from upslope.experiment.open_run import RunParts, open_run
from upslope.experiment.own_training import Trainer, check_trainer
from upslope.experiment.settings import ExperimentSettings
from upslope.ledger import Event, RunResult, State, read_run
from upslope.pool import SeesLabels, Strategy
from upslope.progress import Observer, Stop, stop_on_signals
from upslope.tasks.base import Task
from upslope.training import TrainingSettings


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
    and of `training`; a run begun with one is gone on with under the same name of it and, of a
    `functools.partial`, the same arguments. See `upslope.experiment.own_training`, and
    docs/own-training.md for what cannot be promised then.

    The test set may be empty: then no figures on it are recorded, and those on the labelled set
    alone tell how a cycle went.

    Nothing after the last training is selected: the last cycle's model is for evaluation.

    path: the run directory. splits: pool, test set and, if any, validation set. task: the losses
    and figures. device: "auto", "cpu", "cuda" ...

    Raises:
        RunError: the directory is in use, of another configuration, damaged, or the disk is full.
        SelectionError: the budgets do not fit the pool.
        ConfigError: `splits` of another kind; a network in place of a function that makes one.
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
        check_classes(splits.pool.classes, task)
        check_targets(splits, task)
        check_factory(model)
        self.path = Path(path)
        self.splits, self.strategy = splits, strategy
        self.settings = settings or ExperimentSettings()
        self.training = training or TrainingSettings()
        if trainer is not None:
            check_trainer(trainer, training, strategy)
        self.device = resolve_device(device)
        self._stop, self._observer, self._progress = stop, observer, progress
        self._label_check_is_due = True
        run = open_run(
            RunParts(
                self.path,
                splits,
                task,
                model,
                strategy,
                self.settings,
                self.training,
                trainer,
                config or {},
                self.device,
                shared,
                root,
            )
        )
        self.task, self.changes, self._steps = run.task, run.changes, run.steps

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
        self._compare_labels(is_simulation=False)
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
        an answer for them.

        ids: of samples that wait for a label; a mapping gives each its own reason.

        Raises:
            DataError: an id that does not wait for a label; nothing of this call is recorded.
        """
        reasons = dict(ids) if isinstance(ids, Mapping) else dict.fromkeys(_list_ids(ids), reason)
        self._record({}, reasons)

    def take_back(self, ids: Iterable[str]) -> None:
        """Take back answers: the samples wait for a label again, and the ledger keeps the old one.

        Of samples that were passed: they wait again, or, where others were asked in their place,
        are in the pool again and may be asked. What was trained and chosen stays as it was.

        Raises:
            DataError: an id without an answer; nothing of this call is recorded.
        """
        event = taken_back(self.state, self._steps.run.position, _list_ids(ids))
        self._steps.models.weights.checkpoint.unlink(missing_ok=True)
        self._steps.run.ledger.record(event)

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

    def ids_withdrawn(self) -> frozenset[str]:
        """Return the ids whose answers were taken back at some time, answered since or not."""
        return self._steps.run.ledger.ids_withdrawn()

    def begin_with(self, earlier: EarlierLabels) -> None:
        """Begin with the labels of an earlier run instead of an initial set; nothing is asked.

        Once begun, the same call changes nothing.

        Raises:
            ConfigError: `experiment.start` chooses an initial set too.
            RunError: the run has begun otherwise.
            SelectionError: more labels than the pool has, with those of later cycles.
        """
        steps = self._steps
        to_come = (self.settings.cycles - 1) * steps.budget
        first = earlier.first_events(
            self.path, self.state, self.settings.start, to_come, self.splits.pool
        )
        if first:
            steps.run.ledger.record(*first)

    def own_labels(self, ids: Iterable[str] | None = None) -> dict[str, None]:
        """Return the ids that have a label in the data set, as `tell` takes them.

        ids: of the pool; by default those that wait for a label.
        """
        position, pool = self._steps.run.position, self.splits.pool
        pending = self.state.pending if ids is None else ids
        return {i: None for i in pending if has_label(pool, position[i])}

    def run(self) -> RunResult:
        """Return the run at its end, with the data set's own labels for an oracle. Raises as `ask`
        does.
        """
        self._compare_labels(is_simulation=True)
        self._steps.simulated = True
        with self._working() as stop:
            while not self.finished:
                if self.state.pending:
                    position, ids = self._steps.run.position, self.state.pending
                    answers = oracle_body(self.splits.pool, position, ids)
                    self._steps.run.ledger.record(Event("labelled", self.state.cycle, answers))
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
            return self._steps.models.load(state.cycle - (state.trained is None), stop).eval()

    def close(self) -> None:
        """Let other processes at the run directory."""
        self._steps.run.ledger.close()

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _compare_labels(self, *, is_simulation: bool) -> None:
        """Warn, once per opening, where the data set has other labels by now than are recorded."""
        if self._label_check_is_due:
            position, state = self._steps.run.position, self.state
            warn_of_changed_labels(
                self.path, self.splits.pool, position, state, is_simulation=is_simulation
            )
        self._label_check_is_due = False

    def _record(
        self,
        labels: Mapping[str, Any],
        passed: Mapping[str, str],
        withdrawn: Sequence[str] = (),
    ) -> AnswerCounts:
        steps = self._steps
        if not hasattr(labels, "items"):  # a mapping, or a Series of pandas
            got = "nothing" if labels is None else f"a {type(labels).__name__}"
            raise DataError(
                f"Expected the answers as a mapping of ids to labels but got {got}. Give them with "
                "the ids that `ask` returned: {id: label}."
            )
        events = events_of(
            self.splits.pool, self.task, steps.run.position, self.state, labels, passed, withdrawn
        )
        if any(event.kind in ("corrected", "taken_back") for event in events):
            # A training in progress had other labels; its checkpoint does not tell.
            steps.models.weights.checkpoint.unlink(missing_ok=True)
        if events:
            steps.run.ledger.record(*events)
        return AnswerCounts.of(events)

    @contextmanager
    def _working(self) -> Iterator[Stop]:
        """Progress shown, and Ctrl-C a request to stop, while steps are taken."""
        run_observer = watching_unless_observed(self._observer, 1, progress=self._progress)
        with run_observer as self._steps.run.observer, ExitStack() as stack:
            yield self._stop or stack.enter_context(stop_on_signals())


def _list_ids(ids: Iterable[str]) -> list[str]:
    """The ids; one alone is meant as one, not as its letters."""
    return [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
