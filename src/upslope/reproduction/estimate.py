"""What a reproduction will cost, from one optimiser step and one scored batch of each study.

Timed on this machine, on the study's own network and data: the batches of the last of a few. What
is not counted is said: auxiliary networks (VAAL, SRAAL, the graph network), evaluation, influences.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from upslope.batches import evaluating, resolve_device
from upslope.config import Plan, plan
from upslope.reproduction.study import Opened
from upslope.signals.gradnorm import GradNorm
from upslope.training import place

NOT_COUNTED = (
    "Not counted: reading data, evaluation, the auxiliary networks of vaal, sraal and core-gcn, "
    "influences and bounds. Counted as if all strategies scored by gradient norm, and as if "
    "nothing were shared."
)
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Of one study. step, sample: seconds of an optimiser step and of scoring one candidate."""

    name: str
    plan: Plan
    workers: int
    step: float
    sample: float

    @property
    def steps(self) -> int:
        """Optimiser steps of all runs, references on all labels included."""
        return self.plan.total_steps + self.plan.full_data_runs * self.full_steps

    @property
    def full_steps(self) -> int:
        """Of one reference; as the last budget's, by labels."""
        return round(self.plan.steps[-1] * self.plan.pool / self.plan.budgets[-1])

    @property
    def seconds(self) -> float:
        """Of all runs, with the workers sharing them."""
        scored = self.plan.runs * sum(self.plan.candidates)
        return (self.steps * self.step + scored * self.sample) / self.workers


def cost(opened: Opened) -> Cost:
    """Time a few steps of the study's network on its device.

    Raises:
        UpslopeError: the network cannot take the data.
    """
    config, task, pool = opened.config, opened.job.task, opened.job.splits.pool
    device = resolve_device(config.device)
    model = place(opened.job.model(), config.training, device)
    rng = torch.Generator().manual_seed(0)
    many = range(min(len(pool), config.training.batch_size))
    inputs, targets = pool.inputs(many).to(device), pool.targets(many).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        x, y = task.augment(task.prepare(inputs), targets, rng)
        optimizer.zero_grad(set_to_none=True)
        task.losses(model(x), y).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    few = inputs[: min(len(inputs), config.experiment.score_batch)]

    def score() -> None:
        with evaluating(model):
            GradNorm().compute(model, task, task.prepare(few))

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // config.workers))
    try:
        model.train()
        one, scored = _timed(step, device), _timed(score, device)
    finally:
        torch.set_num_threads(threads)
    workers = min(config.workers, len(config.seeds))
    return Cost(opened.study.name, plan(config, opened.job), workers, one, scored / len(few))


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """The fastest of a few, after a first that warms up."""
    found = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])
