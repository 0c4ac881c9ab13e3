"""Helpers of signals that train something: batches, and a seed for fresh weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from upslope.datasets.readable import first_readable, readable
from upslope.signals.base import FitContext

EPOCHS = 10
MOST_STEPS = 1000


@contextmanager
def seeding(context: FitContext) -> Iterator[None]:
    """Torch's global generator seeded from the context's, and as it was afterwards: layers draw
    their first weights, and dropout its units, from the global one."""
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(torch.randint(2**31, (), generator=context.rng)))
        yield


def batches(context: FitContext, indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """Endless batches of places in `indices`, shuffled at each pass; none where it is empty."""
    while len(indices):
        order = torch.randperm(len(indices), generator=context.rng).tolist()
        if len(order) == 1:
            order *= 2  # BatchNorm cannot train on one sample
        for start in _starts(len(indices), size):
            yield order[start : start + size]


def batches_per_pass(count: int, size: int) -> int:
    """Return how many of `batches` make a pass. count: of samples. size: of a batch."""
    return len(_starts(count, size))


def _starts(count: int, size: int) -> range:
    """Where the batches of a pass begin; a lone last sample of several is left to other passes."""
    return range(0, count - 1 if count > 1 else count, size)


def read(context: FitContext, indices: Sequence[int]) -> Tensor:
    """Prepared inputs of these positions in the data set, on the device, as float32."""
    inputs = context.dataset.inputs(indices).to(context.device)
    return context.task.prepare(inputs).float()


def readable_batches(context: FitContext, indices: Sequence[int], size: int) -> Iterator[Tensor]:
    """Endless batches of prepared inputs, as `batches` draws them, on the device, as float32.

    Samples that cannot be read are left out of their batch where the run skips such samples.

    Raises:
        DataError: a sample cannot be read, and the run does not skip it, or none of them can be.
    """
    if context.skip_unreadable:
        first_readable(context.dataset, 1, indices)
    for places in batches(context, indices, size):
        positions = [indices[i] for i in places]
        if not context.skip_unreadable:
            yield read(context, positions)
            continue
        inputs, _ = readable(context.dataset, positions)
        if len(inputs):
            yield context.task.prepare(inputs.to(context.device)).float()


def training_steps(
    context: FitContext,
    steps: int | None,
    size: int,
    passes: int = EPOCHS,
    pool: int | None = None,
) -> int:
    """Return how many steps to train for: those asked for, or `passes` over the pool.

    steps: asked for; without, MOST_STEPS at most. size: samples per step. pool: samples; by default
    the labelled and the unlabelled.

    The sources of VAAL and SRAAL count by passes as well, and take 100.
    """
    pool = pool or len(context.unlabelled) + len(context.labelled)
    return steps or min(MOST_STEPS, -(-passes * pool // size))


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Without gradients of these weights, which the next step would throw away."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_()
