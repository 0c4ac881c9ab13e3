"""A map of the pool: samples at the first two principal components of their features.

PCA by torch in double precision, with the sign of each component fixed by its largest entry: the
same samples and features give the same map.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import DataError

MOST = 1500
"""Samples of the pool on a map, beside those that were chosen: enough to see its shape."""
GRID = 1000
"""Places along each axis: a thousandth of the width, finer than the dots."""


@dataclass(frozen=True)
class PoolMap:
    """positions: in the pool. x, y: places from 0 to `GRID`, the first component along x.
    explained: the share of the variance that the two hold."""

    positions: tuple[int, ...]
    x: tuple[int, ...]
    y: tuple[int, ...]
    explained: float


def spread_positions(count: int, most: int, also: Collection[int]) -> list[int]:
    """Return at most `most` positions, evenly spaced over a pool of `count`, and all of `also`."""
    spaced = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return sorted({*spaced, *also})


def make_map(features: Tensor, positions: Sequence[int]) -> PoolMap:
    """Return the map of some samples.

    features: (n, d), one row per position.

    Raises:
        DataError: fewer than three samples, or features that are not finite or all equal.
    """
    values = features.double()
    if len(values) < 3 or not bool(torch.isfinite(values).all()):
        raise DataError("Expected finite features of three samples or more for a map.")
    places, explained = project(values)
    low, high = places.amin(dim=0), places.amax(dim=0)
    # One scale for both axes, so that distances along them compare.
    scaled = (places - (low + high) / 2) / (high - low).max() + 0.5
    grid: NDArray[np.int64] = (GRID * scaled).round().long().numpy()
    return PoolMap(
        tuple(positions), tuple(grid[:, 0].tolist()), tuple(grid[:, 1].tolist()), explained
    )


def project(values: Tensor) -> tuple[Tensor, float]:
    """Return the first two principal components of rows, (n, 2), and their share of the variance.

    values: (n, d), double precision.

    Raises:
        DataError: all rows are equal.
    """
    centred = values - values.mean(dim=0)
    total = float(centred.square().sum())
    if total <= 1e-24 * max(1.0, float(values.square().sum())):
        raise DataError("Expected features that differ between samples for a map.")
    n, d = centred.shape
    if d <= n:
        spectrum, vectors = torch.linalg.eigh(centred.T @ centred)
        places = centred @ vectors[:, -2:].flip(1)
        axes = vectors[:, -2:].flip(1)
    else:  # the smaller of the two matrices has the same components
        spectrum, vectors = torch.linalg.eigh(centred @ centred.T)
        places = vectors[:, -2:].flip(1) * spectrum[-2:].flip(0).clamp(min=0).sqrt()
        axes = centred.T @ vectors[:, -2:].flip(1)
    if places.shape[1] == 1:
        places, axes = (torch.cat([one, torch.zeros_like(one)], dim=1) for one in (places, axes))
    largest = axes.abs().argmax(dim=0)
    signs = torch.where(axes.gather(0, largest[None])[0] < 0, -1.0, 1.0)
    return places * signs, float(spectrum[-2:].clamp(min=0).sum() / total)
