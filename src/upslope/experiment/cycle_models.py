"""The model of each cycle: trained once, and again where its file is damaged or missing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from upslope.checkpoints import load_weights
from upslope.errors import RunError
from upslope.experiment.context import RunContext
from upslope.experiment.labels import LabelledPool
from upslope.experiment.model_store import ModelStore
from upslope.experiment.own_training import train_by
from upslope.ledger import Label
from upslope.progress import Stop
from upslope.training import (
    AuxiliaryModule,
    TrainingReport,
    evaluate,
    primary_figure,
    train,
)


@dataclass(frozen=True)
class CycleModels:
    """Trains and loads the models of a run. weights: their files."""

    run: RunContext
    weights: ModelStore

    def fit(
        self, model: nn.Module, cycle: int, labels: Mapping[str, Label], stop: Stop
    ) -> TrainingReport:
        """Train the model of a cycle on `labels`, in place."""
        companion, checkpoint = self.weights.companion, self.weights.checkpoint
        return self._train(model, cycle, labels, stop, companion, checkpoint)

    def _train(
        self,
        model: nn.Module,
        cycle: int,
        labels: Mapping[str, Label],
        stop: Stop,
        companion: AuxiliaryModule | None = None,
        checkpoint: Path | None = None,
    ) -> TrainingReport:
        """Train a network as the run trains; without the last two, beside the run's own.

        The user's loop, where there is one, trains the networks beside too: the one by which a
        temperature is fitted, say, tells something of the run's own only if it is trained alike.
        """
        if self.run.trainer is not None:
            return train_by(
                self.run.trainer,
                model,
                self.run.task,
                LabelledPool(self.run.splits.pool, labels),
                sorted(self.run.position[id_] for id_ in labels),
                seed=self.run.settings.seed,
                cycle=cycle,
                device=self.run.device,
                validation=self.run.splits.validation,
                observer=self.run.reporting(),
                stop=stop,
            )
        return train(
            model,
            self.run.task,
            LabelledPool(self.run.splits.pool, labels),
            sorted(self.run.position[id_] for id_ in labels),
            self.run.training,
            seed=self.run.settings.seed,
            cycle=cycle,
            device=self.run.device,
            validation=self.run.splits.validation,
            companion=companion,
            checkpoint=checkpoint,
            observer=self.run.reporting(),
            stop=stop,
        )

    def load(self, cycle: int, stop: Stop) -> nn.Module:
        """Return the model of a cycle, trained again where its file is damaged or missing.

        Raises:
            RunError: it is, and training gave another model than the one recorded.
        """
        self.ensure_sound(cycle, stop)
        return self.weights.load(cycle)

    def ensure_sound(self, cycle: int, stop: Stop) -> None:
        """Compare the files of a model with what the ledger holds; make them again if need be."""
        digests = self.run.ledger.digests_of_model(cycle)
        if not (fault := self.weights.fault(cycle, digests)):
            return
        warnings.warn(
            f"{fault}: the model of cycle {cycle + 1} is trained again, as it was.", stacklevel=2
        )
        model = self.weights.fresh()
        if cycle > 0 and self.run.settings.retrain == "warm":
            self.ensure_sound(cycle - 1, stop)
            load_weights(model, self.weights.file(cycle - 1))
        self.fit(model, cycle, self.run.ledger.labels_trained_on(cycle), stop)
        new_digests = self.weights.save(cycle, model)
        self.weights.checkpoint.unlink(missing_ok=True)
        if any(new_digests.get(key, digest_) != digest_ for key, digest_ in digests.items()):
            self.weights.file(cycle).unlink(missing_ok=True)
            raise RunError(
                f"Expected {self.weights.file(cycle)} as the run recorded it but {fault}, and "
                "training again gave another model: another machine, version, number of threads or "
                "pool rounds otherwise. Restore the file from a copy, or start another run."
            )

    def look_ahead(
        self, unlabelled: Sequence[int], cycle: int, stop: Stop, ids: Sequence[str]
    ) -> float:
        """The primary figure on all unlabelled samples, were these labelled by the data set too."""
        model = self.weights.fresh()
        self._train(model, cycle, {**self.run.state.labels, **dict.fromkeys(ids, None)}, stop)
        figures = evaluate(
            model.eval(),
            self.run.task,
            self.run.splits.pool,
            unlabelled,
            device=self.run.device,
            batch_size=self.run.settings.score_batch,
            observer=self.run.reporting(),
            stop=stop,
        )
        return primary_figure(figures, self.run.task, "the unlabelled samples")

    def trained_on(
        self, labelled: Sequence[int], cycle: int, stop: Stop, places: Sequence[int]
    ) -> nn.Module:
        """A fresh network trained as that of the cycle is, on these places of `labelled` alone."""
        model, ids = self.weights.fresh(), self.run.splits.pool.ids
        some = [ids[labelled[place]] for place in places]
        self._train(model, cycle, {id_: self.run.state.labels[id_] for id_ in some}, stop)
        return model.eval()
