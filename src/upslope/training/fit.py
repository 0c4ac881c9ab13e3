"""The call that begins a training, or goes on with it, on one process or on several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from upslope.batches import source, with_targets
from upslope.datasets.base import Dataset
from upslope.distributed.engine import current
from upslope.distributed.ranks import leader
from upslope.errors import DataError
from upslope.models.memory_order import ArrangesMemory, put_channels_last
from upslope.progress import Observer, Stop, no_progress
from upslope.seeds import deterministic
from upslope.tasks.base import Task
from upslope.training.auxiliary_module import AuxiliaryModule
from upslope.training.loop import Training, TrainingReport
from upslope.training.rank_training import RankTraining, check_trainable_by_ranks, ending
from upslope.training.settings import TrainingSettings
from upslope.training.task import trained_task
from upslope.training.whitening import whiten


def place(model: nn.Module, settings: TrainingSettings, device: torch.device) -> nn.Module:
    """Return the model on the device, in the order of memory that the settings ask for.

    Where they ask for none, a network that knows its fastest order on a CPU takes it there.
    """
    model = model.to(device)
    if settings.channels_last:
        put_channels_last(model)
    elif device.type == "cpu" and isinstance(model, ArrangesMemory):
        model.arrange_memory()
    return model


def train(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int],
    settings: TrainingSettings,
    *,
    seed: int,
    cycle: int = 0,
    device: torch.device,
    validation: Dataset | None = None,
    companion: AuxiliaryModule | None = None,
    checkpoint: Path | None = None,
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> TrainingReport:
    """Train `model` in place on `indices` of `dataset`, with the targets that the data set gives.

    The order of the data, the augmentation and the dropout depend on (seed, cycle, epoch) alone.
    A batch of one sample left over at the end of an epoch joins the batch before it, because
    BatchNorm cannot train on one. `settings.whitening` reads the inputs of the whole `dataset`, and
    no target beside those of `indices`. The weights are the last epoch's; with `validation`, those
    of the epoch with the best primary figure there, the first of equals. With `checkpoint`, a call
    that was killed or stopped goes on from that file when it is made again.

    device: where to compute. companion: what trains along with the model, if anything. observer: is
    told of progress.

    Where torchrun has started several processes, each computes its part of every batch, and all end
    with the weights of one process, up to rounding.

    Returns: what the training took and reached.

    Raises:
        ModelError: the loss is not finite, one sample alone meets BatchNorm, or the network has no
            layer to whiten.
        ConfigError: settings that the task has no place for, or a companion on several processes.
        DataError: nothing to train on, or a sample that cannot be read.
        RunError: the disk is full.
        Interrupted: a stop was requested; the checkpoint is written.
    """
    if not len(indices):
        raise DataError("Expected at least one labelled sample to train on but got none.")
    with deterministic(device):
        model = place(model, settings, device)
        if settings.whitening:
            whiten(model, task, dataset)
        key = _key(settings, seed, cycle, dataset.name, indices)
        task = trained_task(task, settings)
        ranks = leader(current())
        if ranks is not None:
            check_trainable_by_ranks(companion)
            work = RankTraining(model, task, dataset, tuple(indices), settings, seed, cycle, device)
            partial = work.training(ranks, checkpoint, key, observer, stop or Stop())
            ranks.begin(work)
            with ending(ranks, partial):
                return partial.to_the_end(validation)
        run = Training(
            model,
            task,
            source(dataset, with_targets(dataset, task), indices, device),
            settings,
            seed=seed,
            cycle=cycle,
            device=device,
            n=len(indices),
            companion=companion,
            checkpoint=checkpoint,
            key=key,
            observer=observer,
            stop=stop or Stop(),
        )
        return run.to_the_end(validation)


def _key(
    settings: TrainingSettings, seed: int, cycle: int, name: str, indices: Sequence[int]
) -> str:
    """Which training this is: a checkpoint of another one is not gone on from."""
    text = json.dumps([settings.record(), seed, cycle, name, list(indices)])
    return hashlib.sha256(text.encode()).hexdigest()
