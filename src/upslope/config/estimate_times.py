"""Seconds of training steps, scores and features, measured here on a few samples for `estimate`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn

from upslope.config.assemble import Setup
from upslope.config.estimate_counts import SampleCost
from upslope.config.estimate_samples import RepeatedSamples
from upslope.frozen import FeatureDataset, measure_features
from upslope.pool import Strategy
from upslope.progress import Interrupted, Progress, Stop
from upslope.scoring import compute_signals
from upslope.signals import FittedSignal, build
from upslope.tasks.base import Crops, Task
from upslope.training import TrainingSettings, train, trains_along

SECONDS = 8.0
"""To spend on steps, and up to twice that on scores; what has begun is finished."""
STEPS = 10
OPERATIONS = {"cpu": 4e10, "mps": 4e11, "cuda": 4e12}
"""Floating-point operations that a measured step may take: a second or so."""
_LEAST = 32  # pixels or voxels along an edge


def choose_size(
    work: SampleCost, samples: RepeatedSamples, batch: int, device: torch.device
) -> tuple[int, int]:
    """Return (batch size, into how many parts to cut each edge) for a step of `OPERATIONS`.

    work: of one whole sample. batch: samples per step of the real training.
    """
    most, least = OPERATIONS.get(device.type, 4e10), min(2, batch)
    edges, part = samples.inputs_.shape[2:], 1
    while (
        len(edges) >= 2
        and least * work.training / part ** len(edges) > 2 * most
        and min(edges) // (2 * part) >= _LEAST
    ):
        part *= 2
    return max(least, min(batch, int(most / (work.training / part ** len(edges))))), part


def cut_to_corner(
    model: Callable[[], nn.Module], task: Task, samples: RepeatedSamples, part: int
) -> tuple[Callable[[], nn.Module], Task]:
    """Return the factory of the network and the task for samples cut to a corner.

    samples: the corners. part: into how many parts each edge was cut.
    """
    assert isinstance(model, partial)
    keywords = {**model.keywords, "input_shape": samples.input_shape}
    corner_task: Any = task
    if isinstance(task, Crops) and task.crop:
        corner_task = replace(corner_task, crop=max(_LEAST, task.crop // part))
    return partial(model.func, *model.args, **keywords), corner_task


def time_steps(
    model: Callable[[], nn.Module],
    task: Task,
    samples: RepeatedSamples,
    settings: TrainingSettings,
    size: int,
    device: torch.device,
) -> tuple[float, int]:
    """Return (seconds per step, steps measured): the first counts only where there is no other.

    size: samples per step.
    """
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
    step_times = spans[1:] or spans
    return median(step_times), len(step_times)  # others may use the machine as well


def time_scores(
    model: Callable[[], nn.Module],
    task: Task,
    samples: RepeatedSamples,
    strategies: Mapping[str, Strategy],
    size: int,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, str]]:
    """Return (seconds per sample, by strategy; those not measured, and why).

    size: samples per batch of scoring.
    """
    seconds_of: dict[str, float] = {}
    left_out: dict[str, str] = {}
    times_by_needs: dict[tuple[Any, ...], float] = {(): 0.0}
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
        if trains_along(strategy) or any(isinstance(build(n), FittedSignal) for n in needs):
            left_out[label] = "trains something of its own"
        elif needs not in times_by_needs and time.perf_counter() - began > 2 * SECONDS:
            left_out[label] = "no time left to measure it"
        else:
            if needs not in times_by_needs:
                times_by_needs[needs] = a_sample(needs)
            seconds_of[label] = times_by_needs[needs]
    return seconds_of, left_out


def time_features(setup: Setup, device: torch.device) -> float:
    """Return the seconds that the features of all samples take; 0 without a frozen network."""
    if setup.backbone is None or not isinstance(setup.splits.pool, FeatureDataset):
        return 0.0
    parts = [setup.splits.pool, setup.splits.test, setup.splits.validation]
    count = sum(len(part) for part in parts if part is not None)
    return count * measure_features(setup.splits.pool.dataset, setup.backbone, device)
