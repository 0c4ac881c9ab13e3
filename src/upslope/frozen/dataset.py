"""A data set whose inputs are features, read from the blocks of a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from upslope.blocks import Records, map_block
from upslope.datasets.base import Dataset
from upslope.datasets.subset import Subset
from upslope.errors import DataError
from upslope.frozen.store import Places, gather


class FeatureDataset(Subset):
    """The samples of `dataset` under their ids and labels; inputs are features, (n, width) float32.

    backbone: the digest of the network that made them. blocks, places: where they are; blocks are
    mapped into memory when one of their features is read, once their digests are checked, and stay
    so. A place of -1 is that of a sample that could not be read. compute: raw inputs to features,
    for data sets that are looked at before their features are computed; blocks and places are then
    not read.

    probe: means of the features of made-up samples, which tell what the network computes.

    Travels to other processes as the paths of the blocks.
    """

    def __init__(
        self,
        dataset: Dataset,
        backbone: str,
        width: int,
        blocks: Sequence[Path],
        places: Places,
        compute: Callable[[Tensor], Tensor] | None = None,
        probe: Sequence[float] = (),
    ) -> None:
        super().__init__(dataset, np.arange(len(dataset)).tolist())
        self.source_shape = tuple(dataset.input_shape)
        self.input_shape = (width,)
        self.resident = True
        self.backbone, self.width = backbone, width
        self.probe = tuple(probe)
        self._blocks, self._places, self._compute = tuple(blocks), places, compute
        self._maps: dict[int, Records] = {}

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return (n, width) float32.

        Raises:
            DataError: a sample that cannot be read, or a block that is missing or damaged.
        """
        positions = np.asarray(indices, dtype=np.int64)
        if self._compute is not None:
            return self._compute(self.dataset.inputs(positions.tolist()))
        places = self._places[positions]
        absent = positions[places[:, 0] < 0].tolist()
        if absent:
            self.dataset.inputs(absent)  # says what is wrong with its file
            raise DataError(
                f"Expected features of {self.ids[absent[0]]!r} but it could not be read when they "
                "were computed. Run the same command again."
            )
        for number in np.unique(places[:, 0]).tolist():
            if number not in self._maps:
                self._maps[number] = map_block(self._blocks[number], (self.width,))
        block_maps = [self._maps.get(n, _NONE) for n in range(len(self._blocks))]
        return gather(block_maps, places, self.width)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


_NONE: Records = np.empty(0, dtype=np.void)
