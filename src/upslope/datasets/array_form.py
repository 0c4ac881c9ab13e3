"""Bring arrays of samples to the form that data sets give: channels in front.

Shapes of samples, without the first dimension, and what they become:

    (d,)                               features, as they are
    (h, w) of uint8                    grey images -> (1, h, w)
    (a, b) of floats                   as they are; with `layout`, sequences: (c, t) or (t, c)
    (c, h, w) or (h, w, c)             images -> (c, h, w)
    (c, d, h, w) or (d, h, w, c)       volumes -> (c, d, h, w)

Of images and volumes `layout` says where the channels are. Where it does not, 1 or 3 at one end and
another number at the other tells; all else is refused.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from upslope.datasets.arrays import Array
from upslope.errors import ConfigError, DataError

Layout = Literal["auto", "channels-first", "channels-last"]


def channels_first(images: Array, layout: Layout, source: object) -> Array:
    """Return samples of any shape with their channels in front, as the head of this file says.

    images: (n, ...). source: what messages name.

    Raises:
        DataError: no dimension beside that of the samples.
        ConfigError: `layout` is given and there are no channels, or is not and they may be at
            either end.
    """
    if images.ndim < 2:
        raise DataError(
            f"Expected samples along the first dimension of at least 2 in {source} but got an "
            f"array of shape {images.shape}."
        )
    grey = images.ndim == 3 and images.dtype == np.uint8
    if layout != "auto" and (images.ndim == 2 or grey):
        kind = "grey images (n, h, w)" if grey else "features (n, d)"
        raise ConfigError(
            f"Expected `data.layout` to be auto for samples without channels but got {layout!r} "
            f"for shape {images.shape} of {images.dtype} in {source}, which are {kind}."
        )
    if grey:
        return images[:, None]
    if layout == "auto":
        if images.ndim < 4:
            return images
        first, last = images.shape[1] in (1, 3), images.shape[-1] in (1, 3)
        if first == last:
            raise ConfigError(
                f"Expected 1 or 3 channels either in front or at the end of the samples in "
                f"{source} but got shape {images.shape}. Set `data.layout` to channels-first or "
                "channels-last; to samples without channels add a dimension: x[:, None]."
            )
        layout = "channels-first" if first else "channels-last"
    if layout == "channels-first":
        return images
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))
