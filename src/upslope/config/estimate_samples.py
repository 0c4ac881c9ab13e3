"""The samples that an estimate is measured on: one that can be read, over and over.

`estimate` opens them, and the modules that count and time run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from upslope.batches import read_targets
from upslope.config.plan import without_weights
from upslope.datasets import wants_people
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.base import Dataset
from upslope.datasets.readable import first_readable
from upslope.datasets.subset import labels_of
from upslope.errors import DataError
from upslope.tasks.base import Task


@dataclass(frozen=True, eq=False)
class RepeatedSamples:
    """A few samples over and over: a data set that costs no reading.

    inputs_: (k, *input_shape); targets_: (k, ...). count: how many samples it says it has.
    """

    inputs_: Tensor
    targets_: Tensor
    count: int
    name: str = "measured"
    resident: bool = False
    classes: tuple[str, ...] = ()
    ids: Sequence[str] = field(default_factory=tuple)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of the input of one sample."""
        return tuple(self.inputs_.shape[1:])

    def __len__(self) -> int:
        return self.count

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return the inputs, (n, *input_shape)."""
        return self.inputs_[torch.tensor(indices) % len(self.inputs_)]

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return the targets, (n, ...)."""
        return self.targets_[torch.tensor(indices) % len(self.targets_)]

    def corner(self, part: int) -> RepeatedSamples:
        """Return the same samples cut to the first `part`-th along each edge."""
        edges = [slice(0, max(1, n // part)) for n in self.inputs_.shape[2:]]
        masks = self.targets_.shape[1:] == self.inputs_.shape[2:]
        targets = self.targets_[(slice(None), *edges)] if masks else self.targets_
        return replace(self, inputs_=self.inputs_[(slice(None), slice(None), *edges)],
                       targets_=targets)  # fmt: skip


def repeat_a_sample(pool: Dataset, model: Callable[[], nn.Module], task: Task) -> RepeatedSamples:
    """Return a sample that can be read, twice, with its target; or with one made up where no sample
    has a target.

    pool: searched in order. model, task: make the form of a target that is made up.

    Raises:
        DataError: no sample can be read, or none of those with targets.
    """
    if wants_people(pool):
        indices = np.flatnonzero(labels_of(pool) != UNKNOWN).tolist()
    else:
        indices = list(range(len(pool)))
    for index in indices:
        try:
            inputs, targets = pool.inputs([index]), read_targets(pool, task, [index])
        except DataError:
            if index == indices[-1]:
                raise
            continue
        break
    else:
        inputs = first_readable(pool, 1)
        targets = _zero_targets(model, task, inputs)
    return RepeatedSamples(torch.cat([inputs, inputs]), torch.cat([targets, targets]), 2)


def _zero_targets(model: Callable[[], nn.Module], task: Task, inputs: Tensor) -> Tensor:
    """Return zeros in the form of targets: class 0, an empty mask, 0.0. Steps take as long."""
    network = without_weights(model).eval()
    with torch.no_grad():
        answers = task.predictions(network(task.prepare(inputs).to("meta")))
    return torch.zeros(answers.shape, dtype=answers.dtype)
