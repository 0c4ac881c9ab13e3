"""What a convolution is, but for its weight."""

from __future__ import annotations

from typing import NamedTuple


class Geometry(NamedTuple):
    """Stride, zero padding and dilation in each dimension; groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
