"""`FinishedRun`: the models, candidates and selections of one run; metrics read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from upslope.batches import resolve_device
from upslope.errors import RunError
from upslope.experiment.model_store import ModelStore
from upslope.experiment.sampling import candidates
from upslope.experiment.selection import Selector
from upslope.experiment.settings import ExperimentSettings, amount, candidate_count
from upslope.experiment.verify import recorded_files
from upslope.ledger import RunResult, read_run
from upslope.ledger.store import FILE
from upslope.pool import Strategy
from upslope.progress import Observer, Stop, no_progress
from upslope.reproduction.studies.opened import OpenedStudy
from upslope.scoring import LabelledSet
from upslope.training import auxiliary_module


class FinishedRun:
    """One finished run of a study. Samples are given by their positions in the pool.

    Cycle c has the model T^c, trained on `labelled(c)`.

    study, name, seed: which run. observer, stop: of the metric that reads it.

    Raises:
        RunError: the run is not finished, or did not keep all of its models.
    """

    def __init__(
        self,
        study: OpenedStudy,
        name: str,
        seed: int,
        observer: Observer = no_progress,
        stop: Stop | None = None,
    ) -> None:
        self.study, self.name, self.seed = study, name, seed
        self.observer, self.stop = observer, stop or Stop()
        self.record: RunResult = read_run(study.folder / name / f"seed-{seed}")
        self.task = study.setup.task
        self.pool, self.test = study.setup.splits.pool, study.setup.splits.test
        self.strategy: Strategy = study.setup.strategies[name]
        self.settings: ExperimentSettings = replace(study.settings, seed=seed)
        if not self.record.finished or self.settings.keep_models != "all":
            raise RunError(
                f"Expected {self.record.path} to be finished, with the models of all cycles, but "
                f"it has {len(self.record.cycles)} of {self.settings.cycles} cycles and "
                f"keep_models is {self.settings.keep_models!r}. Run the study with keep_models=all."
            )
        self.device = resolve_device(study.config.device)
        self.budget = amount(self.settings.budget, len(self.pool), "budget")
        self._weights = ModelStore(
            self.record.path,
            study.setup.model,
            seed,
            study.training,
            self.device,
            auxiliary_module(self.strategy),
            keep_all=True,
        )

    @property
    def cycles(self) -> int:
        """Return the number of cycles, and of models."""
        return len(self.record.cycles)

    @property
    def batch_size(self) -> int:
        """Return the most samples that are scored in one batch."""
        return self.settings.score_batch

    @cached_property
    def position(self) -> dict[str, int]:
        """Id -> position in the pool."""
        return {id_: i for i, id_ in enumerate(self.pool.ids)}

    def model(self, cycle: int) -> nn.Module:
        """Return the network T^c of a cycle, in eval mode."""
        return self._load(cycle).eval()

    def _load(self, cycle: int) -> nn.Module:
        """Return the network of a cycle, once it and its companion were compared with the record.

        Raises:
            RunError: a file is damaged or missing.
        """
        digests = {
            ("sha256" if name.endswith(".safetensors") else "companion_sha256"): digest
            for name, (of, digest) in self._selection_records.items()
            if of == cycle
        }
        if fault := self._weights.fault(cycle, digests):
            raise RunError(
                f"Expected the models of {self.record.path} as the run recorded them but {fault}. "
                "Restore the file from a copy, or remove the folder of the run: the same command "
                "trains it again."
            )
        return self._weights.load(cycle)

    @cached_property
    def _selection_records(self) -> Mapping[str, tuple[int, str]]:
        return recorded_files(self.record.path / FILE)

    def labelled(self, cycle: int) -> list[int]:
        """Return the samples on which T^c was trained, in pool order."""
        ids = (id_ for c in self.record.cycles[:cycle] for id_ in c.asked)
        return sorted(self.position[id_] for id_ in (*self.record.initial, *ids))

    def unlabelled(self, cycle: int) -> list[int]:
        """Return the samples of the pool without a label in this cycle, in pool order."""
        labelled = set(self.labelled(cycle))
        return [i for i in range(len(self.pool)) if i not in labelled]

    def candidates(self, cycle: int) -> list[int]:
        """Return the samples among which the strategy selected with T^c, in pool order."""
        count = candidate_count(self.settings.candidates, self.budget)
        unlabelled = self.unlabelled(cycle)
        return candidates(unlabelled, count, len(self.pool), seed=self.seed, cycle=cycle)

    def targets(self, positions: list[int]) -> Tensor:
        """Return the true targets of samples, (n, ...); selection did not see those of candidates.

        Raises:
            DataError: a sample has no target.
        """
        return self.pool.targets(positions)

    def selected_positions(self, cycle: int) -> list[int]:
        """Return the samples that the strategy selected with T^c.

        A run selects nothing after its last cycle: what it would have selected is computed now.
        """
        if cycle < self.cycles - 1:
            return [self.position[i] for i in self.record.cycles[cycle].asked]
        return self.select(cycle)

    def select(self, cycle: int) -> list[int]:
        """Let the strategy select with T^c again; as in the run, in the order of selection.

        Raises:
            UpslopeError: as the strategy and its signals.
        """
        labelled = self.labelled(cycle)
        labels = self.targets(labelled)
        class_labels = labels.dim() == 1 and not torch.is_floating_point(labels)
        selector = Selector(
            self.strategy,
            self.task,
            self.pool,
            self.settings,
            self.device,
            self.observer,
            self.stop,
        )
        self._load(cycle)  # with its companion, it is what the run recorded
        with self._weights.with_companion(cycle) as companion:
            _, selection, _ = selector.choose(
                self.budget,
                cycle,
                self._load(cycle),
                self.candidates(cycle),
                self.unlabelled(cycle),
                LabelledSet(labelled, labels),
                labels if class_labels else None,
                companion,
            )
        return [self.position[i] for i in selection.ids]
