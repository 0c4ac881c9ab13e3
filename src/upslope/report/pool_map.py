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


def spread_positions(count: int, most: int = MOST) -> list[int]:
    """Return at most `most` positions, evenly spaced over a pool of `count`."""
    positions: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return positions


def make_map(features: Tensor, positions: Sequence[int], basis: Collection[int]) -> PoolMap:
    """Return the map of some samples.

    features: (n, d), one row per position. basis: the positions whose components make the axes, so
    that samples which are there for having been chosen do not turn them.

    Raises:
        DataError: a basis of fewer than three samples, or features that are not finite or all
            equal.
    """
    values = features.double()
    rows = torch.tensor([i for i, position in enumerate(positions) if position in basis])
    if len(rows) < 3 or not bool(torch.isfinite(values).all()):
        raise DataError("Expected finite features of three samples or more for a map.")
    mean, axes, variance_shares = principal_axes(values[rows])
    places = (values - mean) @ axes
    low, high = places.amin(dim=0), places.amax(dim=0)
    # One scale for both axes, so that distances along them compare.
    unit_places = (places - (low + high) / 2) / (high - low).max() + 0.5
    grid: NDArray[np.int64] = (GRID * unit_places).round().long().numpy()
    return PoolMap(
        tuple(positions), tuple(grid[:, 0].tolist()), tuple(grid[:, 1].tolist()), variance_shares
    )


def principal_axes(values: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the mean of rows, their first two principal axes, (d, 2), and the share of the
    variance along these.

    values: (n, d), double precision. Of a single feature, the second axis is zero.

    Raises:
        DataError: all rows are equal.
    """
    mean = values.mean(dim=0)
    differences = values - mean
    total = float(differences.square().sum())
    if total <= 1e-24 * max(1.0, float(values.square().sum())):
        raise DataError("Expected features that differ between samples for a map.")
    n, d = differences.shape
    if d <= n:
        spectrum, vectors = torch.linalg.eigh(differences.T @ differences)
        axes = vectors[:, -2:].flip(1)
    else:  # the smaller of the two matrices has the same components
        spectrum, vectors = torch.linalg.eigh(differences @ differences.T)
        # Of rows on a line, what is left of the second axis is rounding along the first.
        axes = torch.linalg.qr(differences.T @ vectors[:, -2:].flip(1)).Q
    if d == 1:
        axes = torch.cat([axes, torch.zeros_like(axes)], dim=1)
    signs = torch.where(axes.gather(0, axes.abs().argmax(dim=0)[None])[0] < 0, -1.0, 1.0)
    return mean, axes * signs, float(spectrum[-2:].clamp(min=0).sum() / total)
