"""Estimates of what a comparison will cost, from a few steps measured here.

Time: a few steps of the training loop and a few batches of scoring, on the configured device. What
is measured is small enough for seconds: fewer samples in a batch, and, where one sample is much
work, a corner of it. It is scaled by floating-point operations, which are counted on shapes alone.
Memory: parameters, gradients, the optimiser's state, and the tensors that a forward pass keeps for
the backward, counted on shapes as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from upslope.batches import resolve_device
from upslope.config.assemble import Setup
from upslope.config.estimate_counts import count_cost, count_weight_bytes
from upslope.config.estimate_samples import repeat_a_sample
from upslope.config.estimate_times import (
    OPERATIONS,
    choose_size,
    cut_to_corner,
    time_features,
    time_scores,
    time_steps,
)
from upslope.config.plan import Plan, without_weights
from upslope.config.schema import Config
from upslope.counts import format_count

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


def estimate(config: Config, setup: Setup, run_plan: Plan) -> Estimate:
    """Return the time and the memory of a comparison, scaled from a few steps that are measured
    here.

    config, setup: of the comparison. run_plan: its sizes, as `plan` gives them.

    Raises:
        DataError: no sample can be read.
        ModelError: the network fails on a sample.
    """
    device, settings = resolve_device(config.device), config.training
    with torch.random.fork_rng(devices=[]):
        samples = repeat_a_sample(setup.splits.pool, setup.model, setup.task)
        whole = count_cost(setup.model, setup.task, samples)
        size, part = choose_size(whole, samples, settings.batch_size, device)
        model, task, small, corner = setup.model, setup.task, samples, whole
        if part > 1:
            model, task = cut_to_corner(setup.model, setup.task, samples.corner(part), part)
            small = samples.corner(part)
            corner = count_cost(model, task, small)
        seconds, steps = time_steps(model, task, small, settings, size, device)
        per_operation = seconds / (size * corner.training)
        step = per_operation * settings.batch_size * whole.training
        most_samples = OPERATIONS.get(device.type, 4e10) / (
            3 * corner.forward
        )  # forward and backward
        batch = max(1, min(config.experiment.score_batch, int(most_samples)))
        score_times, left_out = time_scores(model, task, small, setup.strategies, batch, device)
    ratio = whole.forward / corner.forward
    training = step * sum(run_plan.steps)
    evaluation = per_operation * whole.forward * run_plan.test * len(run_plan.budgets)
    scoring = {k: ratio * value * sum(run_plan.candidates) for k, value in score_times.items()}
    runs = run_plan.runs * (training + evaluation) + len(config.seeds) * sum(scoring.values())
    features = time_features(setup, device)
    everything = settings.steps_for(run_plan.pool) * step
    shape = "x".join(str(n) for n in small.input_shape)
    score_bytes = 3 * whole.scored * config.experiment.score_batch
    return Estimate(
        step=step,
        training=training,
        evaluation=evaluation,
        scoring=scoring,
        left_out=left_out,
        total=runs + run_plan.full_data_runs * everything + features,
        features=features,
        weights=count_weight_bytes(without_weights(setup.model), settings),
        activations=whole.kept * settings.batch_size,
        scoring_memory=min(score_bytes, max(_SCORING, 3 * whole.scored))
        if device.type == "cpu"
        else score_bytes,
        measured=f"{format_count(steps, 'step')} of batch {size} of {shape} on "
        f"{device.type}"
        + (", scaled by floating-point operations" if ratio > 1 or size < settings.batch_size
           else ""),
    )  # fmt: skip
