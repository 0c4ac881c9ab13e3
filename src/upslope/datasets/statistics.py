"""The mean and the standard deviation by which images are normalised."""

from __future__ import annotations

import numpy as np
import torch

from upslope.datasets.base import Dataset, HasStatistics, place_of
from upslope.datasets.readable import readable
from upslope.datasets.subset import Subset
from upslope.errors import DataError

SAMPLE = 10_000
"""Samples looked at where no published statistics exist: enough for three digits."""


def statistics(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std), one number per channel, of images scaled to 0..1.

    The published constants of the data set where there are some; otherwise measured on up to
    10,000 samples evenly spaced over `dataset`, which should be the pool: inputs alone are read,
    no label, and nothing of the test set. Samples that cannot be read are left out: whoever needs
    them decides what that means. Two empty tuples for float inputs: these are taken as they are.

    Raises:
        DataError: no sample can be read.
    """
    source = dataset
    while isinstance(source, Subset):
        source = source.dataset
    if isinstance(source, HasStatistics) and source.mean and source.std:
        return source.mean, source.std
    positions = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int))
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in np.array_split(positions, -(-len(positions) // 256)):
        images, mask = readable(dataset, chunk.tolist())
        if not bool(mask.any()):
            continue
        if images.dtype != torch.uint8:
            return (), ()
        values = images.double().flatten(2).div_(255)  # (n, c, pixels)
        count += values.shape[0] * values.shape[2]
        total = total + values.sum(dim=(0, 2))
        squares = squares + values.square().sum(dim=(0, 2))
    if not count:
        raise DataError(
            f"Expected samples of {place_of(dataset)} that can be read but none of the "
            f"{len(positions):,} looked at can."
        )
    centre = total / count
    # A channel that never changes has no scale; one grey level keeps the division finite.
    spread = (squares / count - centre.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(centre.tolist()), tuple(spread.tolist())
