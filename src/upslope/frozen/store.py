"""Features on the disk, in blocks that are whole or absent, mapped into memory.

A store is a folder, one for each network and the way its inputs are prepared, of `blocks`. Rows are
found by the digests of the samples' content: a pool that grew, a part of a pool and a test set
share what they have in common.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.blocks import SUFFIX, DamagedBlockError, Records, map_block, write_block
from upslope.leftovers import sweep

Places = NDArray[np.int64]
"""(n, 2): the block of each sample, and its row there; -1 for none."""


class FeatureStore:
    """The blocks of a folder. width: numbers per sample."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self.blocks: list[Path] = []
        self._rows: dict[bytes, tuple[int, int]] = {}
        sweep(folder)
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                self._take(path)
            except DamagedBlockError as error:
                with suppress(FileNotFoundError):  # another process has set it aside
                    path.replace(path.with_suffix(".damaged"))
                warnings.warn(f"{error} Its features are computed again.", stacklevel=2)

    def places(self, digests: Sequence[bytes | None]) -> Places:
        """Return where the features of each sample are, (n, 2); -1 where they are not there."""
        none = (-1, -1)
        pairs = [none if d is None else self._rows.get(d, none) for d in digests]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def add(self, digests: Sequence[bytes], features: Tensor) -> None:
        """Write a block, whole or not at all. features: (n, width) float32.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        # Named by what it holds: two processes that compute the same write the same file.
        path = self.folder / f"{hashlib.sha256(b''.join(digests)).hexdigest()[:24]}{SUFFIX}"
        write_block(path, digests, features.numpy())
        self._take(path)

    def _take(self, path: Path) -> None:
        records = map_block(path, (self.width,))
        number = len(self.blocks)
        self.blocks.append(path)
        for row, digest in enumerate(records["digest"]):
            self._rows[digest.tobytes()] = (number, row)


def gather(blocks: Sequence[Records], places: Places, width: int) -> Tensor:
    """Return the features at `places`, (n, width), a copy."""
    out = np.empty((len(places), width), dtype=np.float32)
    for number in np.unique(places[:, 0]).tolist():
        here = places[:, 0] == number
        out[here] = blocks[number]["features"][places[here, 1]]
    return torch.from_numpy(out)
