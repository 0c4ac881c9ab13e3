"""The training loop: plain PyTorch, resumable at any batch, bit for bit on the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from upslope.batches import Source
from upslope.datasets.base import Dataset
from upslope.errors import ModelError
from upslope.models.memory_order import CHANNELS_LAST
from upslope.progress import Interrupted, Observer, Progress, Stop
from upslope.seeds import derive, generator, global_generator
from upslope.tasks.base import AdvisesOnTargets, MirrorsOnDemand, Task
from upslope.training.auxiliary_module import AuxiliaryModule, Step
from upslope.training.evaluate import evaluate, primary_figure
from upslope.training.optimizers import make_optimizer
from upslope.training.schedule import learning_rate
from upslope.training.settings import TrainingSettings
from upslope.training.state import Position, load_position, save_position

CHECKPOINT_SECONDS = 20.0
"""Least wall time between two checkpoints: what a kill may cost."""

STATISTICS_BATCH = 500
"""Most samples in a batch when the statistics of batch normalisation are computed again."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingReport:
    """loss: mean over the last epoch; seconds: wall time over all sittings; best_epoch: the epoch
    whose weights were kept, counted from 0, where a validation set chose it."""

    loss: float
    seconds: float
    best_epoch: int | None = None


def epoch_batches(n: int, batch_size: int, seed: int, cycle: int, epoch: int) -> list[Tensor]:
    """Positions 0..n-1 in this epoch's order; a lone last sample joins the batch before, unless all
    batches are of one sample."""
    order = torch.randperm(n, generator=generator(seed, "order", cycle, epoch))
    batches = list(order.split(batch_size))  # type: ignore[no-untyped-call]
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class Training:
    """One training in progress, of this process alone: `to_the_end` reads top to bottom."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        data: Source,
        settings: TrainingSettings,
        *,
        seed: int,
        cycle: int,
        device: torch.device,
        n: int,
        companion: AuxiliaryModule | None,
        checkpoint: Path | None,
        key: str,
        observer: Observer,
        stop: Stop,
    ) -> None:
        self.model, self.task, self.data, self.settings = model, task, data, settings
        self.seed, self.cycle, self.device, self.n = seed, cycle, device, n
        self.companion, self.checkpoint, self.key = companion, checkpoint, key
        self.observer, self.stop = observer, stop
        self.optimizer = make_optimizer(model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.autocast == "fp16")
        self.epochs = settings.epochs_for(n)
        self.steps = settings.steps_per_epoch(n)
        self.augment = torch.Generator()
        self.coins = torch.randint(0, 2, (n,), generator=generator(seed, "flip", cycle))
        self.started = self.saved = time.monotonic()
        self.loss_sum = torch.zeros((), device=device)

    def to_the_end(self, validation: Dataset | None) -> TrainingReport:
        """Train until the last epoch is done, and leave the weights in the model.

        validation: what chooses the epoch whose weights are kept; None for the last one's.
        """
        if self.companion:
            self.companion.begin(self.model, self.device, derive(self.seed, "companion"))
        try:
            self.at = self._load()
            while self.at.epoch < self.epochs:
                self.model.train()
                self._epoch(validation)
        finally:
            if self.companion:
                self.companion.end()
        if self.at.best_weights:
            self.model.load_state_dict(self.at.best_weights)
        if self.settings.batch_statistics == "recomputed":
            self._recompute_statistics()
        return TrainingReport(self.at.last_loss, self._seconds(), self.at.best_epoch)

    def _epoch(self, validation: Dataset | None) -> None:
        at, cycle, settings = self.at, self.cycle, self.settings
        self.batches = epoch_batches(self.n, settings.batch_size, self.seed, cycle, at.epoch)
        self.augment = generator(self.seed, "augment", cycle, at.epoch)
        self.loss_sum = torch.full((), at.loss_sum, device=self.device)
        with global_generator(self.seed, "dropout", cycle, at.epoch, device=self.device):
            self._restore_generators()
            for inputs, targets in self._stream():
                if self.stop.requested:
                    self._save()
                    self.stop.check()
                self._step(inputs, targets)
                at.step += 1
                if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
                    self._save()
            if validation is not None:
                self._validate(validation)
        self._check_loss(self.optimizer.param_groups[0]["lr"])
        at.last_loss = float(self.loss_sum) / at.seen
        at.epoch, at.step, at.seen, at.loss_sum = at.epoch + 1, 0, 0, 0.0

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        at, settings = self.at, self.settings
        progress = (at.epoch * self.steps + at.step) / (self.epochs * self.steps)
        lr = learning_rate(settings, at.epoch, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        inputs, targets = self._vary(inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            outputs = self._forward(inputs)
            losses = self.task.losses(outputs, targets)
            step = Step(
                self.model, inputs, targets, outputs, losses, at.epoch, progress, lr, self.scaler
            )
            extra = self.companion.loss(step) if self.companion else None
        loss = self._mean(losses) if extra is None else self._mean(losses) + extra
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.loss_sum += self._combine(losses.detach())
        self.scaler.step(self.optimizer)
        if self.companion:
            self.companion.step(step)
        self.scaler.update()
        at.seen += len(self.batches[at.step])
        if self.device.type == "cpu":  # elsewhere reading a number waits for the device
            self._check_loss(lr)
        step_number = at.epoch * self.steps + at.step + 1
        self.observer(Progress("train", step_number, self.epochs * self.steps))

    def _stream(self) -> Iterator[tuple[Tensor, ...]]:
        """The inputs and targets of each batch that is left of this epoch."""
        return self.data.stream(self.batches[self.at.step :])

    def _mean(self, losses: Tensor) -> Tensor:
        """The mean loss of a batch, of which the gradient is taken."""
        return losses.mean()

    def _combine(self, losses: Tensor) -> Tensor:
        """The sum of the losses of a batch; its gradients are there, and are the whole batch's."""
        return losses.sum()

    def _vary(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch as the network is trained on it: prepared, augmented, in the memory layout."""
        inputs = self.task.prepare(inputs)
        if self.settings.augment:
            inputs, targets = self._augment(inputs, targets)
        return self._laid_out(inputs), targets

    def _augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The batch as the task varies it."""
        if self.settings.flip == "random" or not isinstance(self.task, MirrorsOnDemand):
            return self.task.augment(inputs, targets, self.augment)
        flips = (self.coins[self.batches[self.at.step]] + self.at.epoch) % 2 == 1
        return self.task.augment(inputs, targets, self.augment, mirrored=flips)

    def _recompute_statistics(self) -> None:
        """Make the statistics of batch normalisation those of the labelled set, as it is."""
        with global_generator(self.seed, "statistics", self.cycle, device=self.device):
            order = torch.randperm(
                self.n, generator=generator(self.seed, "order", self.cycle, self.epochs)
            )
            # Of one size, as `update_bn` weighs all batches alike.
            batches = order.tensor_split(-(-self.n // STATISTICS_BATCH))
            input_batches = (self.task.prepare(x) for x, _ in self.data.stream(batches))
            update_bn((self._laid_out(x) for x in input_batches), self.model)

    def _laid_out(self, inputs: Tensor) -> Tensor:
        """A batch in the memory layout of the network."""
        order = CHANNELS_LAST.get(inputs.dim()) if self.settings.channels_last else None
        return inputs if order is None else inputs.contiguous(memory_format=order)

    def _forward(self, inputs: Tensor) -> object:
        try:
            return self.model(inputs)
        except ValueError as error:
            if len(inputs) == 1 and "more than 1 value per channel" in str(error):
                raise ModelError(
                    "Expected at least two labelled samples because the model has BatchNorm, which "
                    "cannot train on one, but got 1. Label more, or take a network without it."
                ) from error
            raise

    def _validate(self, validation: Dataset) -> None:
        at = self.at
        try:
            figures = evaluate(
                self.model,
                self.task,
                validation,
                device=self.device,
                batch_size=self.settings.batch_size,
                stop=self.stop,
            )
        except Interrupted:
            self._save()
            raise
        figure = primary_figure(figures, self.task, "the validation set")
        if at.best is None or figure > at.best:
            at.best, at.best_epoch = figure, at.epoch
            state = self.model.state_dict()
            at.best_weights = {k: v.detach().cpu().clone() for k, v in state.items()}

    def _check_loss(self, lr: float) -> None:
        value = float(self.loss_sum)
        if not math.isfinite(value):
            advice = " Train without autocast." if self.settings.autocast else ""
            remedy = self._advice_on_targets() or (
                f"Lower `training.lr` (try {self.settings.lr / 10:.3g}), and look for inputs that "
                f"are not finite.{advice}"
            )
            raise ModelError(
                f"Expected a finite training loss but it is {value} in epoch {self.at.epoch + 1} "
                f"of {self.epochs}, at learning rate {lr:.3g}. {remedy}"
            )

    def _advice_on_targets(self) -> str:
        """Sentences on targets that no learning rate would serve; empty where there are none."""
        if not isinstance(self.task, AdvisesOnTargets):
            return ""
        some = torch.arange(min(self.n, STATISTICS_BATCH))
        ((_, targets),) = self.data.stream([some])
        return self.task.advice(targets)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.settings.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.settings.autocast])

    def _seconds(self) -> float:
        return self.at.seconds + time.monotonic() - self.started

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self._check_loss(self.optimizer.param_groups[0]["lr"])
        at = self.at
        at.random = {"augment": self.augment.get_state(), "cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            at.random["cuda"] = torch.cuda.get_rng_state(self.device)
        at.loss_sum = float(self.loss_sum)
        at.seconds, self.started = self._seconds(), time.monotonic()
        save_position(
            self.checkpoint, self.key, at, self.model, self.optimizer, self.scaler, self.companion
        )
        at.random = {}
        self.saved = time.monotonic()

    def _load(self) -> Position:
        if self.checkpoint is None:
            return Position()
        return load_position(
            self.checkpoint, self.key, self.model, self.optimizer, self.scaler, self.companion
        )

    def _restore_generators(self) -> None:
        """Go on in the middle of an epoch with the random numbers that come next there."""
        random, self.at.random = self.at.random, {}
        if random:
            self.augment.set_state(random["augment"])
            torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.device)
