"""Reads images and masks that lie in arrays, for `HeldMasks` (of files) and `MaskArrays`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from upslope.datasets.arrays import Array, Labels


class ImagesWithMasks:
    """Reads images (n, c, h, w) and masks (n, h, w) uint8 out of arrays.

    images, masks: the arrays, fields of the data set.
    """

    images: Array
    masks: Array

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one image, (c, h, w)."""
        return tuple(self.images.shape[1:])

    @property
    def labels(self) -> Labels:
        """Return (n,) of 0: every image has its mask."""
        return np.zeros(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return a copy of some images, (n, c, h, w)."""
        return torch.from_numpy(self.images[np.asarray(indices, dtype=np.int64)])

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return a copy of some masks, (n, h, w) uint8."""
        return torch.from_numpy(self.masks[np.asarray(indices, dtype=np.int64)])
