"""The mean and the standard deviation by which images are normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from upslope.datasets.base import Dataset, HasStatistics, place_of
from upslope.datasets.readable import readable
from upslope.datasets.subset import Subset
from upslope.errors import ConfigError, DataError

SAMPLE = 10_000
"""Samples looked at where no published statistics exist: enough for three digits."""


def statistics(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std), one number per channel, of images scaled to 0..1.

    The published constants of the data set where there are some; otherwise measured on up to
    10,000 samples evenly spaced over `dataset`, which should be the pool: inputs alone are read,
    no label, and nothing of the test set. Samples that cannot be read are left out: whoever needs
    them decides what that means. Two empty tuples for float inputs: these are taken as they are.

    Raises:
        DataError: no sample can be read; uint8 without channels.
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
        if images.ndim < 3:
            raise DataError(
                f"Expected {place_of(dataset)} to hold images of whole numbers with channels, "
                "(c, h, w), by which they are standardised, but got lists of "
                f"{images.shape[1]:,} numbers. Say their shape, or give floats as the network "
                "takes them."
            )
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


def check_stated(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the (mean, std) that `data.mean` and `data.std` state, of images scaled to 0..1.

    mean, std: the options. channels: of the images.

    Raises:
        ConfigError: not one number per channel of both, or numbers that are not of images in 0..1.
    """
    mean, std = tuple(mean or ()), tuple(std or ())
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"Expected `data.mean` and `data.std` to have one number for each of the {channels} "
            f"channels but got {list(mean)} and {list(std)}. Give both, or neither to measure them."
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise ConfigError(
            "Expected `data.mean` and `data.std` of images scaled to 0..1 but got "
            f"{list(mean)} and {list(std)}. Divide those of images in 0..255 by 255."
        )
    return mean, std
