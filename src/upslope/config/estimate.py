"""Estimates of what a comparison will cost, from a few steps measured here.

Time: a few steps of the training loop and a few batches of scoring, on the configured device. What
is measured is small enough for seconds: fewer samples in a batch, and, where one sample is much
work, a corner of it. It is scaled by floating-point operations, which are counted on shapes alone.
Memory: parameters, gradients, the optimiser's state, and the tensors that a forward pass keeps for
the backward, counted on shapes as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from upslope.batches import resolve_device
from upslope.config.assemble import Plan, Setup, without_weights
from upslope.config.schema import Config
from upslope.datasets import wants_people
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.base import Dataset
from upslope.datasets.readable import first_readable
from upslope.datasets.subset import labels_of
from upslope.errors import DataError
from upslope.frozen import FeatureDataset, measure_features
from upslope.pool import Strategy
from upslope.progress import Interrupted, Progress, Stop
from upslope.scoring import compute_signals
from upslope.signals import build
from upslope.tasks.base import Task
from upslope.training import HasAuxiliaryModule, TrainingSettings, train

SECONDS = 8.0
"""To spend on steps, and up to twice that on scores; what has begun is finished."""
STEPS = 10
OPERATIONS = {"cpu": 4e10, "mps": 4e11, "cuda": 4e12}
"""Floating-point operations that a measured step may take: a second or so."""
_LEAST = 32  # pixels or voxels along an edge
_SCORING = 4 << 30  # bytes that a batch of scoring may take on a CPU, see gradnorm.capacity


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes; `measured` says what was measured, in words.

    step: of one optimiser step at the full batch. training, evaluation: of one run. scoring: of
    one run, by strategy. left_out: strategies whose selection was not measured, and why.
    total: of all runs one after the other. features: of those of a frozen network, of all samples,
    once for all runs; what is on the disk from before takes no time. weights: parameters, their
    gradients and the optimiser's state. activations: at the full training batch. scoring_memory:
    at its batch.
    """

    step: float
    training: float
    evaluation: float
    scoring: Mapping[str, float]
    left_out: Mapping[str, str]
    total: float
    weights: int
    activations: int
    scoring_memory: int
    measured: str
    features: float = 0.0


@dataclass(frozen=True)
class _Work:
    """Of one sample. training, forward: floating-point operations. kept, scored: bytes that a
    forward pass keeps for the backward one, at the training's input and at the whole one."""

    training: float
    forward: float
    kept: int
    scored: int


@dataclass(frozen=True, eq=False)
class _Repeated:
    """A few samples over and over: a data set that costs no reading."""

    inputs_: Tensor
    targets_: Tensor
    count: int
    name: str = "measured"
    resident: bool = False
    classes: tuple[str, ...] = ()
    ids: Sequence[str] = field(default_factory=tuple)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.inputs_.shape[1:])

    def __len__(self) -> int:
        return self.count

    def inputs(self, indices: Sequence[int]) -> Tensor:
        return self.inputs_[torch.tensor(indices) % len(self.inputs_)]

    def targets(self, indices: Sequence[int]) -> Tensor:
        return self.targets_[torch.tensor(indices) % len(self.targets_)]

    def corner(self, part: int) -> _Repeated:
        """The first `part`-th along each edge."""
        edges = [slice(0, max(1, n // part)) for n in self.inputs_.shape[2:]]
        masks = self.targets_.shape[1:] == self.inputs_.shape[2:]
        targets = self.targets_[(slice(None), *edges)] if masks else self.targets_
        return replace(self, inputs_=self.inputs_[(slice(None), slice(None), *edges)],
                       targets_=targets)  # fmt: skip


def estimate(config: Config, setup: Setup, planned: Plan) -> Estimate:
    """Return the time and the memory of a comparison, scaled from a few steps that are measured
    here.

    config, setup: of the comparison. planned: its sizes, as `plan` gives them.

    Raises:
        DataError: no sample can be read.
        ModelError: the network fails on a sample.
    """
    device, settings = resolve_device(config.device), config.training
    with torch.random.fork_rng(devices=[]):
        samples = _samples(setup.splits.pool, setup.model, setup.task)
        whole = _work(setup.model, setup.task, samples)
        size, part = _size(whole, samples, settings.batch_size, device)
        model, task, small, corner = setup.model, setup.task, samples, whole
        if part > 1:
            model, task = _smaller(setup.model, setup.task, samples.corner(part), part)
            small = samples.corner(part)
            corner = _work(model, task, small)
        seconds, steps = _steps(model, task, small, settings, size, device)
        per_operation = seconds / (size * corner.training)
        step = per_operation * settings.batch_size * whole.training
        allowed = OPERATIONS.get(device.type, 4e10) / (3 * corner.forward)  # forward and backward
        batch = max(1, min(config.experiment.score_batch, int(allowed)))
        each, left_out = _scores(model, task, small, setup.strategies, batch, device)
    ratio = whole.forward / corner.forward
    training = step * sum(planned.steps)
    evaluation = per_operation * whole.forward * planned.test * len(planned.budgets)
    scoring = {k: ratio * value * sum(planned.candidates) for k, value in each.items()}
    runs = planned.runs * (training + evaluation) + len(config.seeds) * sum(scoring.values())
    features = _features(setup, device)
    everything = settings.steps_for(planned.pool) * step
    shape = "x".join(str(n) for n in small.input_shape)
    scored = 3 * whole.scored * config.experiment.score_batch
    return Estimate(
        step=step,
        training=training,
        evaluation=evaluation,
        scoring=scoring,
        left_out=left_out,
        total=runs + planned.full_data_runs * everything + features,
        features=features,
        weights=_weights(without_weights(setup.model), settings),
        activations=whole.kept * settings.batch_size,
        scoring_memory=min(scored, max(_SCORING, 3 * whole.scored))
        if device.type == "cpu"
        else scored,
        measured=f"{steps} {'step' if steps == 1 else 'steps'} of batch {size} of {shape} on "
        f"{device.type}"
        + (", scaled by floating-point operations" if ratio > 1 or size < settings.batch_size
           else ""),
    )  # fmt: skip


def _features(setup: Setup, device: torch.device) -> float:
    """Return the seconds that the features of all samples take; 0 without a frozen network."""
    if setup.backbone is None or not isinstance(setup.splits.pool, FeatureDataset):
        return 0.0
    parts = [setup.splits.pool, setup.splits.test, setup.splits.validation]
    count = sum(len(part) for part in parts if part is not None)
    return count * measure_features(setup.splits.pool.dataset, setup.backbone, device)


def _samples(pool: Dataset, model: Callable[[], nn.Module], task: Task) -> _Repeated:
    """A sample that can be read and has a target, twice; with a target made up where none has one.

    Raises:
        DataError: no sample can be read, or none of those with targets.
    """
    if wants_people(pool):
        indices = np.flatnonzero(labels_of(pool) != UNKNOWN).tolist()
    else:
        indices = list(range(len(pool)))
    for index in indices:
        try:
            inputs, targets = pool.inputs([index]), pool.targets([index])
        except DataError:
            if index == indices[-1]:
                raise
            continue
        break
    else:
        inputs = first_readable(pool, 1)
        targets = _zero_targets(model, task, inputs)
    return _Repeated(torch.cat([inputs, inputs]), torch.cat([targets, targets]), 2)


def _zero_targets(model: Callable[[], nn.Module], task: Task, inputs: Tensor) -> Tensor:
    """Zeros in the form of targets: class 0, an empty mask, 0.0. Steps take as long with them."""
    network = without_weights(model).eval()
    with torch.no_grad():
        answers = task.predictions(network(task.prepare(inputs).to("meta")))
    return torch.zeros(answers.shape, dtype=answers.dtype)


def _work(model: Callable[[], nn.Module], task: Task, samples: _Repeated) -> _Work:
    """Operations and kept bytes of one sample, by running shapes alone ("meta" tensors)."""
    raw, targets = samples.inputs([0, 1]), samples.targets([0, 1])
    prepared = task.prepare(raw)
    augmented, masks = task.augment(prepared, targets, torch.Generator().manual_seed(0))
    network = without_weights(model).train()
    counter = FlopCounterMode(display=False)
    with counter:
        losses, kept = _kept(network, task, augmented, masks)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    training = counter.get_total_flops()
    counter = FlopCounterMode(display=False)
    with counter:
        _, scored = _kept(network.eval(), task, prepared, targets)
    forward = counter.get_total_flops()
    return _Work(max(1, training) / 2, max(1, forward) / 2, kept // 2, scored // 2)


def _kept(network: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """(losses, bytes that the backward pass needs beside parameters and buffers)."""
    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        losses = task.losses(network(inputs.to("meta")), targets.to("meta"))
    return losses, sum(storage.nbytes() for storage in held.values())


def _size(work: _Work, samples: _Repeated, batch: int, device: torch.device) -> tuple[int, int]:
    """(batch size, into how many parts to cut each edge) for a step of `OPERATIONS`."""
    most, least = OPERATIONS.get(device.type, 4e10), min(2, batch)
    edges, part = samples.inputs_.shape[2:], 1
    while (
        len(edges) >= 2
        and least * work.training / part ** len(edges) > 2 * most
        and min(edges) // (2 * part) >= _LEAST
    ):
        part *= 2
    return max(least, min(batch, int(most / (work.training / part ** len(edges))))), part


def _smaller(
    model: Callable[[], nn.Module], task: Task, samples: _Repeated, part: int
) -> tuple[Callable[[], nn.Module], Task]:
    """The same network and task for corners."""
    assert isinstance(model, partial)
    keywords = {**model.keywords, "input_shape": samples.input_shape}
    cropped: Any = task
    if crop := getattr(task, "crop", None):
        cropped = replace(cropped, crop=max(_LEAST, crop // part))
    return partial(model.func, *model.args, **keywords), cropped


def _steps(
    model: Callable[[], nn.Module],
    task: Task,
    samples: _Repeated,
    settings: TrainingSettings,
    size: int,
    device: torch.device,
) -> tuple[float, int]:
    """(seconds per step, steps measured): the first one counts only where there is no other."""
    times = [time.perf_counter()]
    stop, count = Stop(), size * (STEPS + 1)

    def observe(progress: Progress) -> None:
        if progress.phase == "train":
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter())
            if times[-1] - times[0] > SECONDS:
                stop.request()

    # A rate so small that no loss can run away in random data.
    careful = replace(
        settings,
        epochs=1,
        sample_passes=None,
        batch_size=size,
        lr=1e-8,
        sgd_lr=1e-8,
        schedule="constant",
        whitening=False,
        batch_statistics="running",
    )
    with contextlib.suppress(Interrupted):  # by `observe`: a few steps were enough
        train(
            model(),
            task,
            replace(samples, count=count),
            range(count),
            careful,
            seed=0,
            device=device,
            observer=observe,
            stop=stop,
        )
    spans = [b - a for a, b in pairwise(times)]
    measured = spans[1:] or spans
    return median(measured), len(measured)  # others may use the machine as well


def _scores(
    model: Callable[[], nn.Module],
    task: Task,
    samples: _Repeated,
    strategies: Mapping[str, Strategy],
    size: int,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, str]]:
    """(seconds per sample, by strategy; those not measured, and why)."""
    seconds_of: dict[str, float] = {}
    left_out: dict[str, str] = {}
    known: dict[tuple[Any, ...], float] = {(): 0.0}
    network, began = model().to(device), time.perf_counter()

    def seconds(needs: Sequence[Any], count: int) -> float:
        data, start = replace(samples, count=count), time.perf_counter()
        compute_signals(
            needs, network, task, data, range(count), device=device, seed=0, batch_size=size
        )
        return time.perf_counter() - start

    def a_sample(needs: Sequence[Any]) -> float:
        first = seconds(needs, size)  # looks at the layout of the network as well
        if time.perf_counter() - began > SECONDS:
            return first / size
        one, three = seconds(needs, size), seconds(needs, 3 * size)
        # What a call costs beside its batches is no part of a pool's cost.
        return (three - one) / (2 * size) if three > one else three / (3 * size)

    for label, strategy in strategies.items():
        needs = tuple(replace(need, labelled=False) for need in strategy.needs)
        if isinstance(strategy, HasAuxiliaryModule) or any(hasattr(build(n), "fit") for n in needs):
            left_out[label] = "trains something of its own"
        elif needs not in known and time.perf_counter() - began > 2 * SECONDS:
            left_out[label] = "no time left to measure it"
        else:
            if needs not in known:
                known[needs] = a_sample(needs)
            seconds_of[label] = known[needs]
    return seconds_of, left_out


def _weights(model: nn.Module, settings: TrainingSettings) -> int:
    """Bytes of parameters and buffers, of gradients, and of the optimiser's state."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    state = 2 if settings.optimizer == "adam" else int(settings.momentum > 0)
    return held + (1 + state) * trained
