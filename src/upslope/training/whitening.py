"""The filters of a first layer that makes patches of pixels uncorrelated: no label is read."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from upslope.datasets.base import Dataset, place_of
from upslope.datasets.readable import readable
from upslope.errors import DataError, ModelError
from upslope.tasks.base import Task

IMAGES = 5_000
"""Images that the filters are computed from, evenly spaced over the pool: of CIFAR-10, their
covariance is known to about 1% from so many."""

_CHUNK = 500


@runtime_checkable
class HasWhitening(Protocol):
    """A network whose first layer is to be set by `whiten`."""

    def whiten(self, images: Tensor) -> None:
        """Set the first layer from prepared images (n, c, h, w)."""
        ...


def whiten(model: nn.Module, task: Task, dataset: Dataset) -> None:
    """Set the whitening layer of `model` from up to `IMAGES` images of `dataset`.

    The same for every strategy, seed and cycle: it depends on the pool alone. Images that cannot be
    read are left out, as they are of the statistics by which images are normalised.

    Raises:
        ModelError: the network has no such layer.
        DataError: no image can be read.
    """
    if not isinstance(model, HasWhitening):
        raise ModelError(
            f"Expected a network with a whitening layer, as training.whitening is set, but "
            f"{type(model).__name__} has no `whiten`. Take the model 'cnn-fast', or "
            "training.whitening=false."
        )
    count = min(IMAGES, len(dataset))
    positions = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int))
    chunks = np.array_split(positions, -(-len(positions) // _CHUNK))
    parts = [inputs for c in chunks if len(inputs := readable(dataset, c.tolist())[0])]
    if not parts:
        raise DataError(
            f"Expected images of {place_of(dataset)} that can be read but none of {count} can."
        )
    device = next(model.parameters()).device
    model.whiten(task.prepare(torch.cat(parts).to(device)))
