"""The steps of Algorithm 1: each does one thing, and records it before the next begins."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope.checkpoints import load_weights
from upslope.datasets.base import Dataset, Splits
from upslope.errors import RunError
from upslope.experiment.checks import as_tensor, check_fit, scores_of
from upslope.experiment.first_model_cache import FirstModelCache
from upslope.experiment.guesses import count_scores, predict_chosen
from upslope.experiment.labels import LabelledPool, TargetsOf
from upslope.experiment.memory import memory_errors
from upslope.experiment.model_store import ModelStore
from upslope.experiment.own_training import Trainer, train_by
from upslope.experiment.sampling import candidates, initial_set
from upslope.experiment.selection import Selector
from upslope.experiment.settings import ExperimentSettings, candidate_count
from upslope.files import json_digest
from upslope.ledger import Event, Label, Ledger, State
from upslope.ledger.records import is_fitted
from upslope.pool import CostBudgeted, PoolView, Selection, Strategy
from upslope.progress import Observer, Progress, Stop, no_progress, with_context
from upslope.scoring import LabelledSet
from upslope.tasks.base import Task
from upslope.training import TrainingReport, TrainingSettings, evaluate, train


@dataclass
class Steps:
    """What a run is made of, and its next step.

    start: chooses the initial set, None where it is drawn at random. initial, budget: counts of
    samples. common: the configuration that all strategies share. position: id -> place in the
    pool. observer: is told of progress; may be exchanged between two steps.
    """

    path: Path
    splits: Splits
    task: Task
    strategy: Strategy
    start: Strategy | None
    settings: ExperimentSettings
    training: TrainingSettings
    initial: int
    budget: int
    common: Mapping[str, Any]
    position: Mapping[str, int]
    device: torch.device
    ledger: Ledger
    weights: ModelStore
    shared: FirstModelCache | None
    observer: Observer = field(default=no_progress)
    trainer: Trainer | None = None
    simulated: bool = field(default=False, init=False)
    """The data set answers for the annotators, so that an oracle may look at its labels."""

    @property
    def state(self) -> State:
        """Return where the run stands, as the ledger's events add up."""
        return self.ledger.state

    @property
    def finished(self) -> bool:
        """Every budget point has been evaluated."""
        return len(self.state.cycles) >= self.settings.cycles

    def until_asked(self, stop: Stop) -> None:
        """Go on until samples wait for a label, or the run is finished."""
        while self.state.owed or not (self.state.pending or self.finished):
            self.advance(stop)

    def advance(self, stop: Stop) -> None:
        """Take the next step that needs no label."""
        stop.check()
        with memory_errors():
            self._advance(stop)

    def _advance(self, stop: Stop) -> None:
        state = self.state
        if state.owed:
            self.ask_instead(stop)
        elif not state.started:
            self.ask_initial(stop)
        elif state.trained is None:
            self.train(stop)
        elif len(state.cycles) == state.cycle:
            self.evaluate(stop)
        else:
            self.select(stop)

    def ask_initial(self, stop: Stop) -> None:
        """Draw the initial set: the same for every strategy under this seed, unless the strategy
        has a way of its own to choose it."""
        ids, skipped = self._draw_initial(self.initial, stop)
        events = [Event("skipped", 0, {"ids": skipped})] if skipped else []
        self.ledger.record(*events, Event("asked", 0, {"ids": ids}))

    def ask_instead(self, stop: Stop) -> None:
        """Ask others for the samples passed, so that each cycle has its count of labels.

        They are the next in the order of the draw, or what the strategy chooses with the same
        model among the candidates that are left. Where the pool has fewer, all of these; where a
        cost budget decides how many labels there are, none.
        """
        started = time.monotonic()
        state, cycle = self.state, self.state.cycle
        by_cost = isinstance(self.strategy, CostBudgeted) and self.strategy.cost_budget is not None
        count = min(len(state.owed), len(self._unlabelled()))
        ids: list[str] = []
        scores: list[float] | None = None
        skipped: list[str] = []
        if cycle == 0 and count:
            ids, skipped = self._draw_initial(count, stop)
        elif count and not by_cost:
            view, selection, skipped = self._choose(count, cycle - 1, "select instead", stop)
            ids, scores = list(selection.ids), scores_of(view, selection)
        body = {
            "ids": ids,
            "instead_of": list(state.owed),
            "scores": scores,
            "seconds": time.monotonic() - started,
            **(self._predict(ids, cycle - 1, stop) if cycle else {}),
        }
        events = [Event("skipped", cycle, {"ids": skipped})] if skipped else []
        self.ledger.record(*events, Event("asked_instead", cycle, body))

    def _draw_initial(self, count: int, stop: Stop) -> tuple[list[str], list[str]]:
        """(ids, ids that could not be read) of samples that were not asked before."""
        pool, settings = self.splits.pool, self.settings
        left = self._unlabelled()
        if self.start is None:
            chosen, skipped = initial_set(
                pool,
                count,
                seed=settings.seed,
                skip_corrupt=settings.on_corrupt == "skip",
                without=set(range(len(pool))) - set(left),
            )
            return [pool.ids[i] for i in chosen], [pool.ids[i] for i in skipped]
        selector = self._selector(self.start, "initial", stop)
        _, selection, unread = selector.choose(
            count, 0, self.weights.fresh(), left, left, LabelledSet()
        )
        return list(selection.ids), unread

    def train(self, stop: Stop) -> None:
        """Train the model of this cycle, or take the one that another run of this seed trained."""
        cycle = self.state.cycle
        file = self.weights.file(cycle)
        labelled = self._labelled()
        key = json_digest([self.common, self.state.labels]) if cycle == 0 else ""
        record = self.shared.fetch(key, file) if self.shared and cycle == 0 else None
        if record is not None:
            body = {**record["trained"], "file": str(file.relative_to(self.path)), "reused": True}
            self.ledger.record(
                Event("trained", 0, body), Event("evaluated", 0, record["evaluated"])
            )
            self._report_cycle()
            return
        model = self.weights.fresh()
        if cycle == 0:
            sample = self.splits.pool.inputs(labelled[:2]).to(self.device)
            prepared = self.task.prepare(sample)
            self.task.check(model, prepared)
            check_fit(self.strategy, model, self.task, prepared)
        elif self.settings.retrain == "warm":
            self._ensure_sound(cycle - 1, stop)
            load_weights(model, self.weights.file(cycle - 1))
        report = self._fit(model, cycle, self.state.labels, stop)
        body = {
            "file": str(file.relative_to(self.path)),
            **self.weights.save(cycle, model),
            "n_labelled": len(labelled),
            "loss": report.loss,
            "seconds": report.seconds,
            "best_epoch": report.best_epoch,
            "reused": False,
            "key": key,
        }
        self.ledger.record(Event("trained", cycle, body))
        self.weights.tidy(self.state.cycle if self.state.trained else None)

    def _fit(
        self, model: nn.Module, cycle: int, labels: Mapping[str, Label], stop: Stop
    ) -> TrainingReport:
        """Train the model of a cycle on `labels`, in place."""
        pool = LabelledPool(self.splits.pool, labels)
        labelled = sorted(self.position[i] for i in labels)
        if self.trainer is not None:
            return train_by(
                self.trainer,
                model,
                self.task,
                pool,
                labelled,
                seed=self.settings.seed,
                cycle=cycle,
                device=self.device,
                validation=self.splits.validation,
                observer=self._within(),
                stop=stop,
            )
        return train(
            model,
            self.task,
            pool,
            labelled,
            self.training,
            seed=self.settings.seed,
            cycle=cycle,
            device=self.device,
            validation=self.splits.validation,
            companion=self.weights.companion,
            checkpoint=self.weights.checkpoint,
            observer=self._within(),
            stop=stop,
        )

    def model(self, cycle: int, stop: Stop) -> nn.Module:
        """Return the model of a cycle, trained again where its file is damaged or missing.

        Raises:
            RunError: it is, and training gave another model than the one recorded.
        """
        self._ensure_sound(cycle, stop)
        return self.weights.load(cycle)

    def _ensure_sound(self, cycle: int, stop: Stop) -> None:
        """Compare the files of a model with what the ledger holds; make them again if need be."""
        recorded = self._digests(cycle)
        if not (fault := self.weights.fault(cycle, recorded)):
            return
        warnings.warn(
            f"{fault}: the model of cycle {cycle + 1} is trained again, as it was.", stacklevel=2
        )
        model = self.weights.fresh()
        if cycle > 0 and self.settings.retrain == "warm":
            self._ensure_sound(cycle - 1, stop)
            load_weights(model, self.weights.file(cycle - 1))
        self._fit(model, cycle, self.ledger.labels_trained_on(cycle), stop)
        made = self.weights.save(cycle, model)
        self.weights.checkpoint.unlink(missing_ok=True)
        if any(made.get(key, digest_) != digest_ for key, digest_ in recorded.items()):
            self.weights.file(cycle).unlink(missing_ok=True)
            raise RunError(
                f"Expected {self.weights.file(cycle)} as the run recorded it but {fault}, and "
                "training again gave another model: another machine, version, number of threads or "
                "pool rounds otherwise. Restore the file from a copy, or start another run."
            )

    def _digests(self, cycle: int) -> dict[str, str]:
        """The SHA-256 of the files of a cycle's model, as recorded."""
        trained = self.state.trained
        if trained is not None and cycle == self.state.cycle:
            return {k: trained[k] for k in ("sha256", "companion_sha256") if k in trained}
        return {"sha256": self.state.cycles[cycle].model_sha256}

    def evaluate(self, stop: Stop) -> None:
        """Record the figures on the test set, where there is one, and on the labelled set."""
        cycle = self.state.cycle
        labels = self.state.labels
        if self.state.trained and self.state.trained["n_labelled"] != len(labels):
            # Answers came late or were taken back between the training and now.
            labels = self.ledger.labels_trained_on(cycle)
        figures = {
            "test": self._figures(self.splits.test, range(len(self.splits.test)), stop),
            "train": self._figures(
                LabelledPool(self.splits.pool, labels),
                sorted(self.position[i] for i in labels),
                stop,
            ),
        }
        self.ledger.record(Event("evaluated", cycle, figures))
        trained = self.state.trained
        if cycle == 0 and self.shared and trained and not trained["reused"]:
            self.shared.publish(
                trained.get("key", ""),
                self.weights.file(0),
                {"sha256": trained["sha256"], "trained": dict(trained), "evaluated": figures},
            )
        self._report_cycle()

    def _figures(self, dataset: Dataset, indices: Sequence[int], stop: Stop) -> dict[str, float]:
        """The task's figures with the model of this cycle; none where there is no sample."""
        if not len(indices):
            return {}
        return evaluate(
            self.model(self.state.cycle, stop),
            self.task,
            dataset,
            indices,
            device=self.device,
            batch_size=self.settings.score_batch,
            observer=self._within(),
            stop=stop,
        )

    def select(self, stop: Stop) -> None:
        """Score the candidates with the model of this cycle and ask the next cycle's labels."""
        started = time.monotonic()
        cycle = self.state.cycle
        view, selection, skipped = self._choose(self.budget, cycle, "select", stop)
        body = {
            "ids": list(selection.ids),
            "scores": scores_of(view, selection),
            "notes": dict(selection.notes),
            "seconds": time.monotonic() - started,
            "candidates": len(view),
            **count_scores(view, selection),
            **self._predict(selection.ids, cycle, stop),
        }
        events = [Event("skipped", cycle + 1, {"ids": skipped})] if skipped else []
        self.ledger.record(*events, Event("asked", cycle + 1, body))

    def _choose(
        self, budget: int, cycle: int, purpose: str, stop: Stop
    ) -> tuple[PoolView, Selection, list[str]]:
        """What the strategy chooses with the model of `cycle`, as `Selector.choose` returns it."""
        state, pool = self.state, self.splits.pool
        labelled = self._labelled()
        targets: TargetsOf | Tensor = TargetsOf(LabelledPool(pool, state.labels), labelled)
        labels = as_tensor([state.labels[pool.ids[i]] for i in labelled])
        unlabelled = self._unlabelled()
        count = candidate_count(self.settings.candidates, max(budget, self.budget))
        scored = candidates(unlabelled, count, len(pool), seed=self.settings.seed, cycle=cycle)
        model = self.model(cycle, stop)
        with self.weights.with_companion(cycle) as companion:
            return self._selector(self.strategy, purpose, stop).choose(
                budget,
                cycle,
                model,
                scored,
                unlabelled,
                LabelledSet(labelled, targets if labels is None else labels),
                labels,
                companion,
                partial(self._trained_on, labelled, cycle, stop),
                partial(self._look_ahead, unlabelled, cycle, stop) if self.simulated else None,
            )

    def _predict(self, ids: Sequence[str], cycle: int, stop: Stop) -> dict[str, Any]:
        """What the model of a cycle predicts for samples, for the record."""
        return predict_chosen(
            self.model(cycle, stop),
            self.task,
            self.splits.pool,
            [self.position[id_] for id_ in ids],
            self.device,
            self.settings.score_batch,
            stop,
        )

    def _fit_on(
        self, model: nn.Module, cycle: int, labels: Mapping[str, Label], stop: Stop
    ) -> None:
        """Train a network beside the run's own, as that of the cycle is; nothing is recorded."""
        train(
            model,
            self.task,
            LabelledPool(self.splits.pool, labels),
            sorted(self.position[id_] for id_ in labels),
            self.training,
            seed=self.settings.seed,
            cycle=cycle,
            device=self.device,
            validation=self.splits.validation,
            observer=self._within(),
            stop=stop,
        )

    def _look_ahead(
        self, unlabelled: Sequence[int], cycle: int, stop: Stop, ids: Sequence[str]
    ) -> float:
        """The primary figure on all unlabelled samples, were these labelled by the data set too."""
        model = self.weights.fresh()
        self._fit_on(model, cycle, {**self.state.labels, **dict.fromkeys(ids, None)}, stop)
        figures = evaluate(
            model.eval(),
            self.task,
            self.splits.pool,
            unlabelled,
            device=self.device,
            batch_size=self.settings.score_batch,
            observer=self._within(),
            stop=stop,
        )
        return figures[self.task.primary]

    def _trained_on(
        self, labelled: Sequence[int], cycle: int, stop: Stop, places: Sequence[int]
    ) -> nn.Module:
        """A fresh network trained as that of the cycle is, on these places of `labelled` alone."""
        model, ids = self.weights.fresh(), self.splits.pool.ids
        some = [ids[labelled[place]] for place in places]
        self._fit_on(model, cycle, {id_: self.state.labels[id_] for id_ in some}, stop)
        return model.eval()

    # --- what the steps are made of ---

    def _labelled(self) -> list[int]:
        """Positions of the labelled set in pool order, whatever the order of the answers."""
        return sorted(self.position[i] for i in self.state.labels)

    def _unlabelled(self) -> list[int]:
        """Positions of the samples that may still be asked."""
        state = self.state
        known = state.labels.keys() | state.skipped | state.passed.keys() | set(state.pending)
        return [p for i, p in self.position.items() if i not in known]

    def _selector(self, strategy: Strategy, purpose: str, stop: Stop) -> Selector:
        return Selector(
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
        return with_context(
            self.observer,
            cycle=self.state.cycle,
            cycles=self.settings.cycles,
            labelled=len(self.state.labels),
        )

    def _report_cycle(self) -> None:
        done = self.state.cycles[-1]
        self._within()(
            Progress(
                "cycle",
                done.cycle + 1,
                self.settings.cycles,
                done.metrics,
                train=done.train_metrics,
                fitted=is_fitted(done.train_metrics, self.task.primary),
            )
        )
