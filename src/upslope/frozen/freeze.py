"""Compute the features of a data set, once, in blocks that survive a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from upslope.batches import StreamedSource, in_order, resolve_device
from upslope.datasets.base import Dataset
from upslope.datasets.contents import content_digests
from upslope.datasets.paths import cache_folder
from upslope.datasets.readable import first_readable, readable
from upslope.datasets.splits import Splits
from upslope.display import watching_unless_observed
from upslope.errors import ConfigError
from upslope.frozen.backbone import Backbone, take_backbone
from upslope.frozen.dataset import FeatureDataset
from upslope.frozen.probe import store_folder, summary
from upslope.frozen.store import FeatureStore
from upslope.progress import Observer, Progress, Stop, no_progress
from upslope.seeds import deterministic
from upslope.tasks.base import Augments, HasViews, Task

BLOCK = 256
"""Samples in a block: what a kill may cost, about ten seconds of two cores at 128 pixels."""

BATCH = 32
"""Samples in a forward pass: few, so that the activations of large images fit."""


@dataclass(frozen=True)
class Frozen:
    """Splits of features, and a factory of the head that is trained on them.

    splits: of features. backbone: the network that gave them.
    """

    splits: Splits
    head: Callable[[], nn.Module]
    backbone: Backbone


def freeze(
    splits: Splits,
    task: Task,
    model: Callable[[], nn.Module],
    *,
    device: torch.device | str = "auto",
    folder: Path | str | None = None,
    observer: Observer | None = None,
    progress: bool = True,
    stop: Stop | None = None,
    compute: bool = True,
) -> Frozen:
    """Return the features of all splits by the network that `model` builds, and its head.

    Features are those of the network in eval mode on samples that are not augmented. They are kept
    in `folder`, by default in the user's cache, under the digests of the network and of the content
    of each sample: another call computes what is not there yet. A process that is killed loses one
    block of 256 samples at most.

    task: says how inputs are prepared. observer: is told of progress; without one, it is shown in
    a terminal or a notebook, unless `progress` is False. compute: False computes nothing but the
    features of samples that are read, when they are read: to try things on a few samples.

    device: where to compute.

    Raises:
        ConfigError: a network without trained weights, or a task that augments images.
        ModelError: a network without a linear head that takes one vector per sample.
        Interrupted: a stop was requested; the same call goes on.
        RunError: the disk is full or cannot be written.
    """
    refuse_augmentation(task)
    place = resolve_device(device)
    backbone = take_backbone(model, task, place)
    if not compute:
        frozen = _map_parts(splits, lambda part: _lazy(part, backbone, place))
    else:
        with watching_unless_observed(observer, 1, progress=progress) as watcher:
            frozen = freeze_splits(splits, backbone, place, folder, watcher, stop)
    return Frozen(frozen, backbone.make_head(len(splits.pool.classes)), backbone)


def freeze_splits(
    splits: Splits,
    backbone: Backbone,
    device: torch.device,
    folder: Path | str | None = None,
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> Splits:
    """Return the splits of features, once those that were not on the disk are computed.

    backbone: the network. device: where to compute. folder: where features are kept. observer: is
    told of progress. stop: a request to stop.

    Raises: as `freeze` does.
    """
    return _map_parts(
        splits, lambda part: freeze_dataset(part, backbone, device, folder, observer, stop)
    )


def refuse_augmentation(task: Task) -> None:
    """Raise ConfigError where a task would vary samples whose features are computed once."""
    augmentation = task.augmentation if isinstance(task, Augments) else "none"
    views = task.views if isinstance(task, HasViews) else "none"
    for key, value in (("augmentation", augmentation), ("views", views)):
        if value != "none":
            raise ConfigError(
                f"Expected task.{key} to be none, as model.freeze computes features once, of each "
                f"image as it is, but got {value!r}. Leave it out, or train without model.freeze."
            )


def freeze_dataset(
    dataset: Dataset,
    backbone: Backbone,
    device: torch.device,
    folder: Path | str | None = None,
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> FeatureDataset:
    """Return the data set of features, once those that were not on the disk are computed.

    dataset: the samples. backbone: the network. device: where to compute. folder: where features
    are kept. observer: is told of progress. stop: a request to stop.

    Raises: as `freeze` does.
    """
    stop = stop or Stop()
    if not len(dataset):
        return FeatureDataset(dataset, backbone.digest, backbone.width, (), _nowhere(0))
    base = Path(folder) if folder is not None else cache_folder() / "features"
    with deterministic(device):
        probe = backbone.probe(first_readable(dataset, 1).to(device))
        store = FeatureStore(store_folder(base, backbone.digest, probe, device), backbone.width)
        digests = content_digests(dataset, lambda _: stop.check())
        _fill(store, dataset, digests, backbone, device, observer, stop)
    places = store.places(digests)
    return FeatureDataset(
        dataset, backbone.digest, backbone.width, store.blocks, places, probe=summary(probe)
    )


def measure_features(dataset: Dataset, backbone: Backbone, device: torch.device) -> float:
    """Return the seconds per sample that features take here, from one batch.

    dataset: the samples. backbone: the network. device: where to compute.
    """
    inputs = first_readable(dataset, 8).to(device)
    backbone.features(inputs[:2])
    began = time.perf_counter()
    backbone.features(inputs)
    return (time.perf_counter() - began) / len(inputs)


def _fill(
    store: FeatureStore,
    dataset: Dataset,
    digests: Sequence[bytes | None],
    backbone: Backbone,
    device: torch.device,
    observer: Observer,
    stop: Stop,
) -> None:
    """Compute the features that the store has not, a block after the other."""
    missing = np.flatnonzero(store.places(digests)[:, 0] < 0).tolist()
    missing = [i for i in missing if digests[i] is not None]
    if not missing:
        return
    already = len(digests) - len(missing)
    observer(Progress("features", already, len(digests)))
    for start in range(0, len(missing), BLOCK):
        part = missing[start : start + BLOCK]
        batches = in_order(len(part), BATCH)
        data = StreamedSource(partial(readable, dataset), part, device)
        there: list[bytes] = []
        rows: list[Tensor] = []
        for batch, (inputs, mask) in zip(batches, data.stream(batches), strict=True):
            stop.check()
            positions = batch[mask.cpu()].tolist()
            if positions:
                rows.append(backbone.features(inputs))
                there += [d for p in positions if (d := digests[part[p]]) is not None]
            observer(Progress("features", already + start + int(batch[-1]) + 1, len(digests)))
        if rows:
            store.add(there, torch.cat(rows))


def _lazy(dataset: Dataset, backbone: Backbone, device: torch.device) -> FeatureDataset:
    def compute(inputs: Tensor) -> Tensor:
        return backbone.features(inputs.to(device))

    return FeatureDataset(
        dataset, backbone.digest, backbone.width, (), _nowhere(len(dataset)), compute
    )


def _nowhere(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.full((count, 2), -1, dtype=np.int64)


def _map_parts(splits: Splits, freeze_one: Callable[[Dataset], Dataset]) -> Splits:
    validation = splits.validation
    return Splits(
        freeze_one(splits.pool),
        freeze_one(splits.test),
        None if validation is None else freeze_one(validation),
        splits.notes,
    )
