"""A training by all ranks: each computes its part of every batch, and all take the same step.

Gradients are those of the mean loss over the whole batch: each rank divides the sum of its losses
by the size of the whole batch, and gradients are added over ranks. Every rank then takes the same
step of its own optimiser. Batch normalisation takes the statistics of the whole batch. So all ranks
hold the weights that one process would reach, up to the order of sums.

Random augmentation is that of one process, whatever the number of ranks: every rank varies the
whole batch with the same generator and keeps its part. Of data that are streamed, each rank reads
its part alone, and parts are exchanged before they are varied. Dropout draws by rank: with it, the
number of ranks changes the network as another seed would.

Before each step all ranks agree on it (`_agree`): a sample that one of them cannot read, or a
request to stop, then ends the training in the same place everywhere. `DistributedDataParallel`
has no such place, and waits for ever in its backward pass.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope.batches import source, with_targets
from upslope.datasets.base import Dataset
from upslope.distributed.batch_norm import SyncedBatchNorm
from upslope.distributed.engine import using
from upslope.distributed.gradients import add_gradients, exchange_parts
from upslope.distributed.parcels import to_cpu
from upslope.distributed.ranks import CalledOffError, Ranks
from upslope.errors import ConfigError
from upslope.progress import Interrupted, Observer, Stop, no_progress
from upslope.seeds import deterministic, global_generator
from upslope.tasks.base import Augments, Task
from upslope.training.auxiliary_module import AuxiliaryModule
from upslope.training.loop import Training, TrainingReport
from upslope.training.settings import TrainingSettings
from upslope.training.state import Position, load_optimizer


def check_trainable_by_ranks(companion: AuxiliaryModule | None) -> None:
    """Raise ConfigError for a module that trains along with the network, on whole batches."""
    if companion is not None:
        raise ConfigError(
            f"Expected a strategy that any training serves, as torchrun started several processes, "
            f"but {type(companion).__name__} trains along with the network on whole batches. Leave "
            "torchrun out, or take another strategy."
        )


@dataclass(frozen=True)
class RankTraining:
    """A training as it travels to the other ranks: see `upslope.training.train`."""

    model: nn.Module
    task: Task
    dataset: Dataset
    indices: tuple[int, ...]
    settings: TrainingSettings
    seed: int
    cycle: int
    device: torch.device

    def stream(self, batches: Any) -> Generator[Any]:
        """Refuse: a training is not divided by batches."""
        raise NotImplementedError

    def training(
        self, ranks: Ranks, checkpoint: Path | None, key: str, observer: Observer, stop: Stop
    ) -> PartialTraining:
        """Return this rank's training, which begins when `to_the_end` is called."""
        return PartialTraining(self, ranks, checkpoint, key, observer, stop)

    def take_part(self, ranks: Ranks) -> None:
        """Train along with rank 0, from its weights on; nothing is kept."""
        run: PartialTraining | None = None
        try:
            with deterministic(self.device):
                run = self.training(ranks, None, "", no_progress, Stop())
                run.to_the_end(None)
        except (CalledOffError, Interrupted):
            return
        except Exception as error:
            if ranks.broken or (run and (run.within_step or run.agreed_to_end)):
                raise
            if run is None:
                ranks.share()  # the state that rank 0 sends at the start
            agree(ranks, error, stop=False)


@contextmanager
def ending(ranks: Ranks, run: PartialTraining) -> Iterator[None]:
    """Have the other ranks end a training that fails on rank 0, where they can be told."""
    try:
        yield
    except BaseException:
        if run.within_step:
            ranks.broken = True  # they wait for this rank's gradients: its end must tell them
        elif not (run.agreed_to_end or ranks.broken):
            run.call_off()
        raise


def agree(ranks: Ranks, error: Exception | None, *, stop: bool) -> bool:
    """Return whether rank 0 ends the training here; every rank calls this before each step.

    error: why this rank cannot go on. stop: whether this rank, if it is rank 0, wants an end.

    Raises:
        UpslopeError: what a rank could not do, on rank 0. CalledOffError: the same, on the others.
    """
    has_failed, is_stopped = ranks.add(torch.tensor([int(error is not None), int(stop)])).tolist()
    if has_failed:
        errors = ranks.gather(error)
        raise next((e for e in errors if e is not None), CalledOffError())
    return bool(is_stopped)


class PartialTraining(Training):
    """The training of one rank; that of rank 0 also validates, reports and writes checkpoints."""

    def __init__(
        self,
        work: RankTraining,
        ranks: Ranks,
        checkpoint: Path | None,
        key: str,
        observer: Observer,
        stop: Stop,
    ) -> None:
        dataset, n = work.dataset, len(work.indices)
        super().__init__(
            work.model,
            work.task,
            source(dataset, with_targets(dataset, work.task), work.indices, work.device),
            work.settings,
            seed=work.seed,
            cycle=work.cycle,
            device=work.device,
            n=n,
            companion=None,
            checkpoint=checkpoint,
            key=key,
            observer=observer,
            stop=Stop(),  # requested where all ranks have agreed to stop
        )
        self.ranks, self.asked = ranks, stop
        self.parameters = [p for p in work.model.parameters() if p.requires_grad]
        varies = not (isinstance(work.task, Augments) and work.task.augmentation == "none")
        self.varies = work.settings.augment and varies
        self.resident = dataset.resident
        self.within_step = self.agreed_to_end = False

    # --- what all ranks share ---

    def to_the_end(self, validation: Dataset | None) -> TrainingReport:
        """Train until the end, at which all ranks meet once more."""
        report = super().to_the_end(validation)
        self._agree(None, stop=True)
        return report

    def _load(self) -> Position:
        position = Position()
        try:
            position = super()._load()
        except BaseException:
            self.agreed_to_end = True
            self.ranks.share(None)
            raise
        if self.ranks.leads:
            weights = to_cpu(self.model.state_dict())
            steps = to_cpu(self.optimizer.state_dict())
            begin = replace(position, best_weights={})
            self.ranks.share((begin, weights, steps, self.scaler.state_dict()))
            return position
        if (state := self.ranks.share()) is None:
            raise CalledOffError
        weights, steps, scale = state[1:]
        self.model.load_state_dict(weights)
        load_optimizer(self.optimizer, steps)
        if scale:
            self.scaler.load_state_dict(scale)
        first_position: Position = state[0]
        return first_position

    def _agree(self, error: Exception | None, *, stop: bool) -> None:
        """Let all ranks take the next step, or end before it: then `stop` is requested."""
        try:
            if agree(self.ranks, error, stop=stop):
                self.agreed_to_end = True
                self.stop.request()
        except BaseException:
            self.agreed_to_end = True
            raise

    def call_off(self) -> None:
        """Tell the other ranks, which wait for the next step, that there is none."""
        self.agreed_to_end = True
        with suppress(Exception):  # another rank's reason, beside this rank's own
            agree(self.ranks, None, stop=True)

    # --- this rank's part of a batch ---

    def _whole(self, batch: Tensor) -> bool:
        """Whether every rank computes all of a batch, because it has fewer samples than ranks."""
        return len(batch) < self.ranks.size

    def _part(self, batch: Tensor) -> slice:
        """The places in a batch that this rank computes."""
        if self._whole(batch):
            return slice(None)
        rank, size, n = self.ranks.rank, self.ranks.size, len(batch)
        return slice(rank * n // size, (rank + 1) * n // size)

    def _stream(self) -> Iterator[tuple[Tensor, ...]]:
        batches = self.batches[self.at.step :]
        whole = self.resident and self.varies
        data = self.data.stream(batches if whole else [b[self._part(b)] for b in batches])
        for _ in batches:
            error, samples = None, None
            try:
                samples = next(data)
            except Exception as failure:
                error = failure
            self._agree(error, stop=self.asked.requested)
            assert samples is not None  # else the ranks have agreed to fail
            yield samples

    def _vary(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        batch = self.batches[self.at.step]
        if not self.varies:
            return super()._vary(inputs, targets)
        if not self.resident and not self._whole(batch):
            inputs = exchange_parts(self.ranks, inputs, len(batch))
            targets = exchange_parts(self.ranks, targets, len(batch))
        inputs, targets = super()._vary(inputs, targets)
        part = self._part(batch)
        return self._laid_out(inputs[part]), targets[part]

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        self.within_step = True
        at, ranks = self.at, self.ranks
        place = (at.epoch, at.step, ranks.rank)
        whole = self._whole(self.batches[at.step])
        gradient_context: AbstractContextManager[Any] = nullcontext()
        if not whole:
            gradient_context = SyncedBatchNorm(ranks.rank, ranks.size, ranks.add)
        with (
            gradient_context,
            global_generator(self.seed, "dropout", self.cycle, *place, device=self.device),
        ):
            super()._step(inputs, targets)

    def _mean(self, losses: Tensor) -> Tensor:
        batch = self.batches[self.at.step]
        copies = self.ranks.size if self._whole(batch) else 1
        return losses.sum() / (len(batch) * copies)

    def _combine(self, losses: Tensor) -> Tensor:
        copies = self.ranks.size if self._whole(self.batches[self.at.step]) else 1
        total = add_gradients(self.ranks, self.parameters, losses.sum() / copies)
        self.within_step = False  # no rank waits for another until the next step
        return total

    # --- what rank 0 does alone ---

    def _validate(self, validation: Dataset) -> None:
        with using(None):  # the others wait for the next step, and serve nothing
            super()._validate(validation)

    def _recompute_statistics(self) -> None:
        if self.ranks.leads:
            super()._recompute_statistics()
