"""The steps of Algorithm 1: each does one thing, and records it before the next begins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from upslope.checkpoints import check_same_network, load_weights
from upslope.datasets.base import Dataset
from upslope.errors import warn_user
from upslope.experiment.checks import as_tensor, check_fit, check_layers, scores_of
from upslope.experiment.context import RunContext
from upslope.experiment.cycle_models import CycleModels
from upslope.experiment.first_model_cache import FirstModelCache
from upslope.experiment.guesses import count_scores, predict_chosen
from upslope.experiment.labels import LabelledPool, TargetsOf
from upslope.experiment.sampling import candidates, initial_set
from upslope.experiment.selection import Selector
from upslope.experiment.settings import candidate_count
from upslope.files import json_digest
from upslope.ledger import Event, State
from upslope.ledger.records import is_fitted
from upslope.memory import memory_errors
from upslope.pool import CostBudgeted, PoolView, Selection, Strategy
from upslope.progress import Progress, Stop
from upslope.scoring import LabelledSet
from upslope.tasks.base import AdvisesOnTargets
from upslope.training import evaluate, primary_figure


@dataclass
class Steps:
    """The steps of a run, and which is next.

    start: chooses the initial set, None where it is drawn at random. initial, budget: counts of
    samples. common: the configuration that all strategies share. shared: where runs of one seed
    share their first model, None where they do not.
    """

    run: RunContext
    models: CycleModels
    strategy: Strategy
    start: Strategy | None
    initial: int
    budget: int
    common: Mapping[str, Any]
    shared: FirstModelCache | None
    simulated: bool = field(default=False, init=False)
    """The data set answers for the annotators, so that an oracle may look at its labels."""
    _has_advised: bool = field(default=False, init=False)
    """Whether this opening has said that the targets do not fit the task: once is enough."""

    @property
    def state(self) -> State:
        """Return where the run stands, as the ledger's events add up."""
        return self.run.state

    @property
    def finished(self) -> bool:
        """Every budget point has been evaluated."""
        return len(self.state.cycles) >= self.run.settings.cycles

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
        ids, passed_ids = self._draw_initial(self.initial, stop)
        events = [Event("skipped", 0, {"ids": passed_ids})] if passed_ids else []
        self.run.ledger.record(*events, Event("asked", 0, {"ids": ids}))

    def ask_instead(self, stop: Stop) -> None:
        """Ask others for the samples passed, so that each cycle has its count of labels.

        They are the next in the order of the draw, or what the strategy chooses with the same
        model among the candidates that are left. Where the pool has fewer, all of these; where a
        cost budget decides how many labels there are, none.
        """
        start_time = time.monotonic()
        state, cycle = self.state, self.state.cycle
        by_cost = isinstance(self.strategy, CostBudgeted) and self.strategy.cost_budget is not None
        count = min(len(state.owed), len(self.run.unlabelled()))
        ids: list[str] = []
        scores: list[float] | None = None
        passed_ids: list[str] = []
        if cycle == 0 and count:
            ids, passed_ids = self._draw_initial(count, stop)
        elif count and not by_cost:
            view, selection, passed_ids = self._choose(count, cycle - 1, "select instead", stop)
            ids, scores = list(selection.ids), scores_of(view, selection)
        body = {
            "ids": ids,
            "instead_of": list(state.owed),
            "scores": scores,
            "seconds": time.monotonic() - start_time,
            **(self._predict(ids, cycle - 1, stop) if cycle else {}),
        }
        events = [Event("skipped", cycle, {"ids": passed_ids})] if passed_ids else []
        self.run.ledger.record(*events, Event("asked_instead", cycle, body))

    def _draw_initial(self, count: int, stop: Stop) -> tuple[list[str], list[str]]:
        """(ids, ids that could not be read) of samples that were not asked before."""
        pool, settings = self.run.splits.pool, self.run.settings
        left = self.run.unlabelled()
        if self.start is None:
            ids, passed_ids = initial_set(
                pool,
                count,
                seed=settings.seed,
                skip_corrupt=settings.on_corrupt == "skip",
                without=set(range(len(pool))) - set(left),
            )
            return [pool.ids[i] for i in ids], [pool.ids[i] for i in passed_ids]
        selector = self._selector(self.start, "initial", stop)
        _, selection, unread = selector.choose(
            count, 0, self.models.weights.fresh(), left, left, LabelledSet()
        )
        return list(selection.ids), unread

    def train(self, stop: Stop) -> None:
        """Train the model of this cycle, or take the one that another run of this seed trained."""
        cycle = self.state.cycle
        file = self.models.weights.file(cycle)
        labelled = self.run.labelled()
        key = self._first_model_key() if cycle == 0 else ""
        record = self.shared.fetch(key, file) if self.shared and cycle == 0 else None
        if record is not None:
            body = {
                **record["trained"],
                "file": str(file.relative_to(self.run.path)),
                "reused": True,
            }
            self.run.ledger.record(
                Event("trained", 0, body), Event("evaluated", 0, record["evaluated"])
            )
            self._report_cycle()
            return
        model = self.models.weights.fresh()
        if cycle == 0:
            sample = self.run.splits.pool.inputs(labelled[:2]).to(self.run.device)
            inputs = self.run.task.prepare(sample)
            names = [*model.state_dict()]
            self.run.task.check(model, inputs)
            check_fit(self.strategy, model, self.run.task, inputs)
            check_layers(model, names)
        else:
            check_same_network(model, self.models.weights.file(cycle - 1))
        if cycle and self.run.settings.retrain == "warm":
            self.models.ensure_sound(cycle - 1, stop)
            load_weights(model, self.models.weights.file(cycle - 1))
        report = self.models.fit(model, cycle, self.state.labels, stop)
        body = {
            "file": str(file.relative_to(self.run.path)),
            **self.models.weights.save(cycle, model),
            "n_labelled": len(labelled),
            "loss": report.loss,
            "seconds": report.seconds,
            "best_epoch": report.best_epoch,
            "reused": False,
            "key": key,
        }
        self.run.ledger.record(Event("trained", cycle, body))
        self.models.weights.tidy(self.state.cycle if self.state.trained else None)

    def _first_model_key(self) -> str:
        """Return what tells the first model of this seed from others: all that it depends on."""
        masks = [self.state.masks] if self.state.masks else []  # the labels say None for these
        return json_digest([self.common, self.state.labels, *masks])

    def evaluate(self, stop: Stop) -> None:
        """Record the figures on the test set, where there is one, and on the labelled set."""
        cycle = self.state.cycle
        # Answers may have come late, been corrected or been taken back since the training.
        labels = self.run.ledger.labels_trained_on(cycle)
        labelled, places = LabelledPool(self.run.splits.pool, labels), self._places(labels)
        figures = {
            "test": self._figures(self.run.splits.test, range(len(self.run.splits.test)), stop),
            "train": self._figures(labelled, places, stop),
        }
        if len(self.run.splits.test):
            primary_figure(figures["test"], self.run.task, "the test set")
        if not self._has_advised and isinstance(self.run.task, AdvisesOnTargets):
            advice = self.run.task.advice(labelled.targets(places), figures["train"])
            if advice:
                warn_user(advice, UserWarning)
            self._has_advised = bool(advice)
        self.run.ledger.record(Event("evaluated", cycle, figures))
        training = self.state.trained
        if cycle == 0 and self.shared and training and not training["reused"]:
            self.shared.publish(
                training.get("key", ""),
                self.models.weights.file(0),
                {"sha256": training["sha256"], "trained": dict(training), "evaluated": figures},
            )
        self._report_cycle()

    def _places(self, labels: Mapping[str, Any]) -> list[int]:
        """The places of labelled samples in the pool, in its order."""
        return sorted(self.run.position[id_] for id_ in labels)

    def _figures(self, dataset: Dataset, indices: Sequence[int], stop: Stop) -> dict[str, float]:
        """The task's figures with the model of this cycle; none where there is no sample."""
        if not len(indices):
            return {}
        return evaluate(
            self.models.load(self.state.cycle, stop),
            self.run.task,
            dataset,
            indices,
            device=self.run.device,
            batch_size=self.run.settings.score_batch,
            observer=self.run.reporting(),
            stop=stop,
        )

    def select(self, stop: Stop) -> None:
        """Score the candidates with the model of this cycle and ask the next cycle's labels."""
        start_time = time.monotonic()
        cycle = self.state.cycle
        # Where samples were passed, or have left the pool, the last cycles may find fewer.
        budget = max(1, min(self.budget, len(self.run.unlabelled())))
        view, selection, passed_ids = self._choose(budget, cycle, "select", stop)
        body = {
            "ids": list(selection.ids),
            "scores": scores_of(view, selection),
            "notes": dict(selection.notes),
            "seconds": time.monotonic() - start_time,
            "candidates": len(view),
            **count_scores(view, selection),
            **self._predict(selection.ids, cycle, stop),
        }
        events = [Event("skipped", cycle + 1, {"ids": passed_ids})] if passed_ids else []
        self.run.ledger.record(*events, Event("asked", cycle + 1, body))

    def _choose(
        self, budget: int, cycle: int, purpose: str, stop: Stop
    ) -> tuple[PoolView, Selection, list[str]]:
        """What the strategy chooses with the model of `cycle`, as `Selector.choose` returns it."""
        state, pool = self.state, self.run.splits.pool
        labelled = self.run.labelled()
        targets: TargetsOf | Tensor = TargetsOf(LabelledPool(pool, state.labels), labelled)
        labels = as_tensor([state.labels[pool.ids[i]] for i in labelled])
        unlabelled = self.run.unlabelled()
        count = candidate_count(self.run.settings.candidates, max(budget, self.budget))
        candidate_ids = candidates(
            unlabelled, count, len(pool), seed=self.run.settings.seed, cycle=cycle
        )
        model = self.models.load(cycle, stop)
        look_ahead = partial(self.models.look_ahead, unlabelled, cycle, stop)
        with self.models.weights.with_companion(cycle) as companion:
            return self._selector(self.strategy, purpose, stop).choose(
                budget,
                cycle,
                model,
                candidate_ids,
                unlabelled,
                LabelledSet(labelled, targets if labels is None else labels),
                labels,
                companion,
                partial(self.models.trained_on, labelled, cycle, stop),
                look_ahead if self.simulated else None,
            )

    def _predict(self, ids: Sequence[str], cycle: int, stop: Stop) -> dict[str, Any]:
        """What the model of a cycle predicts for samples, for the record."""
        return predict_chosen(
            self.models.load(cycle, stop),
            self.run.task,
            self.run.splits.pool,
            [self.run.position[id_] for id_ in ids],
            self.run.device,
            self.run.settings.score_batch,
            stop,
        )

    def _selector(self, strategy: Strategy, purpose: str, stop: Stop) -> Selector:
        return Selector(
            strategy,
            self.run.task,
            self.run.splits.pool,
            self.run.settings,
            self.run.device,
            self.run.reporting(),
            stop,
            purpose,
            self.run.path / "learnt" if self.shared is None else self.shared.folder,
        )

    def _report_cycle(self) -> None:
        cycle = self.state.cycles[-1]
        self.run.reporting()(
            Progress(
                "cycle",
                cycle.cycle + 1,
                self.run.settings.cycles,
                cycle.metrics,
                train=cycle.train_metrics,
                fitted=is_fitted(cycle.train_metrics, self.run.task.primary),
            )
        )
