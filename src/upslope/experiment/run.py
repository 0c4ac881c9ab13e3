"""Algorithm 1 of the paper, one recorded step at a time.

    with Experiment("runs/mine", splits=splits, task=task, model=factory, strategy=Margin()) as run:
        while ids := run.ask():            # trains, scores and chooses as far as it can
            run.tell({i: label(i) for i in ids})

Every step is on the disk before the next begins. A process killed at any moment goes on, when the
same call is made again, and ends with the same selections, weights and figures, on the CPU bit
for bit (with the same number of threads: they decide the order of sums).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from upslope.batches import resolve_device
from upslope.checkpoints import load_weights
from upslope.datasets.base import Splits
from upslope.datasets.checks import check_splits
from upslope.errors import DataError
from upslope.experiment.checks import (
    as_tensor,
    check_fit,
    check_total,
    described,
    digest,
    positions,
    scores_of,
)
from upslope.experiment.choosing import Chooser
from upslope.experiment.drawing import candidates, initial_set
from upslope.experiment.environment import environment
from upslope.experiment.labels import LabelledPool, TargetsOf, checked, oracle
from upslope.experiment.settings import ExperimentSettings, amount, candidate_count
from upslope.experiment.sharing import SharedModel
from upslope.experiment.weights import Weights
from upslope.ledger import Event, Ledger, RunResult, State, read_run
from upslope.pool import OwnStart, Strategy
from upslope.progress import Observer, Progress, Stop, silent, stop_on_signals, within
from upslope.scoring import LabelledSet
from upslope.tasks.base import Task
from upslope.training import Accompanied, TrainingSettings, evaluate, train


class Experiment:
    """One strategy under one seed, in one run directory.

    model: a factory of a fresh network; its initial weights come from the seed. config: whatever
    else a reader of the run should know (data set, model and their options); a run is only gone
    on with under the same. shared: a folder where runs of one seed share their first model.
    stop: a request to stop that somebody else owns; otherwise Ctrl-C and SIGTERM make one.

    Nothing after the last training is selected: the last cycle's model is for evaluation.

    Raises:
        RunError: the directory is in use, of another configuration, damaged, or the disk is full.
        SelectionError: the budgets do not fit the pool.
        ConfigError: `splits` of another kind.
        DataError: an empty pool, or ids that are not distinct.
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
        config: Mapping[str, Any] | None = None,
        device: torch.device | str = "auto",
        observer: Observer = silent,
        shared: Path | None = None,
        stop: Stop | None = None,
    ) -> None:
        check_splits(splits)
        self.path = Path(path)
        self.splits, self.task, self.strategy = splits, task, strategy
        self.settings = settings or ExperimentSettings()
        self.training = training or TrainingSettings()
        self.device = resolve_device(device)
        self._stop = stop
        self._observer = observer
        self._ids = splits.pool.ids
        self._position = positions(self._ids)
        pool, cycles = len(splits.pool), self.settings.cycles
        self._initial = amount(self.settings.initial, pool, "initial")
        self._budget = amount(self.settings.budget, pool, "budget") if cycles > 1 else 0
        check_total(self._initial, self._budget, cycles, pool)
        self._weights = Weights(
            self.path,
            model,
            self.settings.seed,
            self.training,
            self.device,
            strategy.companion() if isinstance(strategy, Accompanied) else None,
            keep_all=self.settings.keep_models == "all",
        )
        self._own_start = strategy.start if isinstance(strategy, OwnStart) else None
        alone = self._weights.companion or self._own_start
        self._shared = SharedModel(shared) if shared and not alone else None
        self._common = {
            **(config or {}),
            "experiment": asdict(self.settings),
            "training": asdict(self.training),
            "samples": {
                "pool": pool,
                "pool_ids_sha256": digest(list(self._ids)),
                "test": len(splits.test),
                "validation": len(splits.validation) if splits.validation else 0,
            },
        }
        self._ledger = Ledger(
            self.path,
            config={**self._common, "strategy": described(strategy)},
            environment=environment(self.device),
            info={
                "strategy": strategy.name,
                "seed": self.settings.seed,
                "primary": task.primary,
                "cycles": cycles,
                "data": splits.pool.name,
                "classes": list(splits.pool.classes),
                "pool": pool,
                "test": len(splits.test),
            },
        )
        self._weights.tidy(self.state.cycle if self.state.trained else None)

    @property
    def state(self) -> State:
        """Where the run stands."""
        return self._ledger.state

    @property
    def finished(self) -> bool:
        """Every budget point has been evaluated."""
        return len(self.state.cycles) >= self.settings.cycles

    def ask(self) -> tuple[str, ...]:
        """The ids that wait for a label, in order of choice; empty once the run is finished.

        Trains, evaluates, scores and selects first, as far as that can go without a label.

        Raises:
            UpslopeError: a step failed; the ones before it are recorded.
            Interrupted: a stop was requested; the same call goes on.
        """
        with self._stopping() as stop:
            while not self.state.pending and not self.finished:
                self._advance(stop)
        return self.state.pending

    def tell(self, labels: Mapping[str, int | None]) -> None:
        """Record labels of some or all of the ids asked; None: as the data set says.

        Raises:
            DataError: an id that was not asked, or has its label; a label out of range. Then no
                label of this call is recorded.
        """
        state = self.state
        told = checked(self.splits.pool, self._position, state.pending, state.labels, labels)
        if told:
            self._ledger.record(Event("labelled", state.cycle, {"labels": told}))

    def run(self) -> RunResult:
        """Run to the end with the data set's own labels for an oracle. Raises as `ask` does."""
        with self._stopping() as stop:
            while not self.finished:
                if self.state.pending:
                    answer = oracle(self.splits.pool, self._position, self.state.pending)
                    self._ledger.record(Event("labelled", self.state.cycle, {"labels": answer}))
                else:
                    self._advance(stop)
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
        return self._weights.load(state.cycle - (state.trained is None)).eval()

    def close(self) -> None:
        """Let other processes at the run directory."""
        self._ledger.close()

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- the steps: each does one thing and records it ---

    def _advance(self, stop: Stop) -> None:
        stop.check()
        state = self.state
        if not state.started:
            self._ask_initial(stop)
        elif state.trained is None:
            self._train(stop)
        elif len(state.cycles) == state.cycle:
            self._evaluate(stop)
        else:
            self._select(stop)

    def _ask_initial(self, stop: Stop) -> None:
        """Draw the initial set: the same for every strategy under this seed, but for one that
        has a way of its own to choose it, before any training and label."""
        pool, settings = self.splits.pool, self.settings
        if self._own_start is None:
            chosen, skipped = initial_set(
                pool,
                self._initial,
                seed=settings.seed,
                skip_corrupt=settings.on_corrupt == "skip",
            )
            ids, unread = [self._ids[i] for i in chosen], [self._ids[i] for i in skipped]
        else:
            everything = range(len(pool))
            chooser = self._chooser(self._own_start, "initial", stop)
            _, selection, unread = chooser.choose(
                self._initial, 0, self._weights.fresh(), everything, everything, LabelledSet()
            )
            ids = list(selection.ids)
        events = [Event("skipped", 0, {"ids": unread})] if unread else []
        self._ledger.record(*events, Event("asked", 0, {"ids": ids}))

    def _train(self, stop: Stop) -> None:
        cycle = self.state.cycle
        file = self._weights.file(cycle)
        labelled = self._labelled()
        key = digest([self._common, self.state.labels]) if cycle == 0 else ""
        record = self._shared.fetch(key, file) if self._shared and cycle == 0 else None
        if record is not None:
            body = {**record["trained"], "file": str(file.relative_to(self.path)), "reused": True}
            self._ledger.record(
                Event("trained", 0, body), Event("evaluated", 0, record["evaluated"])
            )
            self._report_cycle()
            return
        model = self._weights.fresh()
        if cycle == 0:
            sample = self.splits.pool.inputs(labelled[:2]).to(self.device)
            prepared = self.task.prepare(sample)
            self.task.check(model, prepared)
            check_fit(self.strategy, model, self.task, prepared)
        elif self.settings.retrain == "warm":
            load_weights(model, self._weights.file(cycle - 1))
        report = train(
            model,
            self.task,
            LabelledPool(self.splits.pool, self.state.labels),
            labelled,
            self.training,
            seed=self.settings.seed,
            cycle=cycle,
            device=self.device,
            validation=self.splits.validation,
            companion=self._weights.companion,
            checkpoint=self._weights.checkpoint,
            observer=self._within(),
            stop=stop,
        )
        body = {
            "file": str(file.relative_to(self.path)),
            "sha256": self._weights.save(cycle, model),
            "n_labelled": len(labelled),
            "loss": report.loss,
            "seconds": report.seconds,
            "best_epoch": report.best_epoch,
            "reused": False,
        }
        self._ledger.record(Event("trained", cycle, body))
        self._weights.tidy(self.state.cycle if self.state.trained else None)

    def _evaluate(self, stop: Stop) -> None:
        cycle = self.state.cycle
        figures = {
            name: evaluate(
                self._weights.load(self.state.cycle),
                self.task,
                dataset,
                indices,
                device=self.device,
                batch_size=self.settings.score_batch,
                observer=self._within(),
                stop=stop,
            )
            for name, dataset, indices in (
                ("test", self.splits.test, None),
                ("train", LabelledPool(self.splits.pool, self.state.labels), self._labelled()),
            )
        }
        self._ledger.record(Event("evaluated", cycle, figures))
        trained = self.state.trained
        if cycle == 0 and self._shared and trained and not trained["reused"]:
            key = digest([self._common, self.state.labels])
            self._shared.publish(
                key,
                self._weights.file(0),
                {"sha256": trained["sha256"], "trained": dict(trained), "evaluated": figures},
            )
        self._report_cycle()

    def _select(self, stop: Stop) -> None:
        """Score the candidates with the model of this cycle and ask the next cycle's labels."""
        started = time.monotonic()
        state, pool, cycle = self.state, self.splits.pool, self.state.cycle
        labelled = self._labelled()
        targets = TargetsOf(LabelledPool(pool, state.labels), labelled)
        labels = as_tensor([state.labels[self._ids[i]] for i in labelled])
        unlabelled = self._unlabelled()
        count = candidate_count(self.settings.candidates, self._budget)
        scored = candidates(unlabelled, count, len(pool), seed=self.settings.seed, cycle=cycle)
        with self._weights.with_companion(cycle) as companion:
            view, selection, skipped = self._chooser(self.strategy, "select", stop).choose(
                self._budget,
                cycle,
                self._weights.load(cycle),
                scored,
                unlabelled,
                LabelledSet(labelled, targets if labels is None else labels),
                labels,
                companion,
            )
        body = {
            "ids": list(selection.ids),
            "scores": scores_of(view, selection),
            "notes": dict(selection.notes),
            "seconds": time.monotonic() - started,
            "candidates": len(view),
        }
        events = [Event("skipped", cycle + 1, {"ids": skipped})] if skipped else []
        self._ledger.record(*events, Event("asked", cycle + 1, body))

    # --- what the steps are made of ---

    def _labelled(self) -> list[int]:
        """Positions of the labelled set in pool order, whatever the order of the answers."""
        return sorted(self._position[i] for i in self.state.labels)

    def _unlabelled(self) -> list[int]:
        known = self.state.labels.keys() | self.state.skipped
        return [p for i, p in self._position.items() if i not in known]

    def _chooser(self, strategy: Strategy, purpose: str, stop: Stop) -> Chooser:
        return Chooser(
            strategy,
            self.task,
            self.splits.pool,
            self.settings,
            self.device,
            self._within(),
            stop,
            purpose,
        )

    def _within(self) -> Observer:
        return within(
            self._observer,
            cycle=self.state.cycle,
            cycles=self.settings.cycles,
            labelled=len(self.state.labels),
        )

    def _report_cycle(self) -> None:
        done = self.state.cycles[-1]
        self._within()(Progress("cycle", done.cycle + 1, self.settings.cycles, done.metrics))

    @contextmanager
    def _stopping(self) -> Iterator[Stop]:
        if self._stop is not None:
            yield self._stop
            return
        with stop_on_signals() as stop:
            yield stop
