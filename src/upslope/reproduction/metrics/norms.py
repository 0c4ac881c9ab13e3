"""Gradient norms of the samples of a data set, at the true label and by the paper's two losses.

The metrics of Tables 1, 2, 4 and 5 call it. A model is run in eval mode, on data as its task
prepares it, without augmentation, and left as it was. Samples are read in batches; data that is not
`resident` is never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from upslope.autodiff import evaluating
from upslope.closed_forms import keeping_digits
from upslope.datasets.base import Dataset
from upslope.gradnorm import gradient_norms
from upslope.reproduction.metrics.sample_batches import SampleBatches
from upslope.signals.gradnorm import GradNorm
from upslope.tasks.base import Task

Norm = Literal["global", "tensor-sum"]
Scheme = Literal["entropy", "expected"]
"""The loss without labels, of Eq. 7 and of Eq. 6."""


def label_norms(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int],
    targets: Tensor,
    *,
    device: torch.device,
    batch_size: int,
    norm: Norm = "global",
) -> Tensor:
    """Return ||grad L(T(x))|| with L the training criterion at the true label, (n,) on the CPU.

    model: T, left as it was. task: says what L is. dataset, indices: the samples x.
    targets: of these samples, (n, ...). device: where the model lies. batch_size: most samples at
    a time. norm: as in `upslope.gradient_norms`.

    Raises:
        DataError: a sample cannot be read.
        GradientNormError: a loss or a gradient is not finite; the model mixes samples.
    """

    def norms(inputs: Tensor, labels: Tensor) -> Tensor:
        with keeping_digits():
            return gradient_norms(model, inputs, lambda out: task.losses(out, labels), norm=norm)

    batches = SampleBatches(task, dataset, indices, targets, device, batch_size)
    with evaluating(model):
        return torch.cat([norms(x, y).cpu() for x, y in batches])


def scheme_norms(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int],
    scheme: Scheme,
    *,
    norm: Norm = "global",
    device: torch.device,
    batch_size: int,
) -> Tensor:
    """Return ||grad L(T(x))|| with L of Eq. 7 ("entropy") or Eq. 6 ("expected"), (n,) on the CPU.

    scheme: which loss. Other arguments: as in `label_norms`.

    This is the score that entropy-gradnorm and expected-gradnorm select by. With cross-entropy,
    Eq. 6 is Eq. 7, so the two differ by rounding alone.

    Raises:
        DataError: a sample cannot be read.
        GradientNormError: a loss or a gradient is not finite; the model mixes samples.
    """
    score = GradNorm(loss=scheme, norm=norm)
    batches = SampleBatches(task, dataset, indices, None, device, batch_size)
    with evaluating(model):
        return torch.cat([score.compute(model, task, x).cpu() for x, _ in batches])
