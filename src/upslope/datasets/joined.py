"""Two data sets as one, one behind the other: a pool, and labelled samples that are not in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from upslope.datasets.base import Dataset
from upslope.errors import DataError

_Reader = Callable[[Sequence[int]], Tensor]


class JoinedDataset:
    """The samples of `first`, then those of `second`, whose ids begin with `labelled/`.

    Raises:
        DataError: inputs of different shapes or types.
    """

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self.first, self.second = first, second
        self.name, self.classes = first.name, first.classes
        self.input_shape, self.resident = first.input_shape, first.resident and second.resident
        self.ids: Sequence[str] = (*first.ids, *(f"labelled/{id_}" for id_ in second.ids))
        one, other = (part.inputs([0]) for part in (first, second))
        if one.shape != other.shape or one.dtype != other.dtype:
            why = (
                " uint8 is standardised by `mean` and `std`, floats are taken as they are."
                if one.dtype != other.dtype
                else ""
            )
            raise DataError(
                "Expected the labelled samples to be of the shape and type of the pool's, "
                f"{tuple(one.shape[1:])} {one.dtype}, but got {tuple(other.shape[1:])} "
                f"{other.dtype}.{why} Bring both to what the network takes."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return the inputs of some samples, (n, *input_shape)."""
        return self._read(indices, self.first.inputs, self.second.inputs)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return (n, ...). Raises DataError for a sample without a target."""
        return self._read(indices, self.first.targets, self.second.targets)

    def _read(self, indices: Sequence[int], first: _Reader, second: _Reader) -> Tensor:
        """Read the samples of each part together, and put them in the order asked for."""
        size = len(self.first)
        places = [
            [k for k, i in enumerate(indices) if (i >= size) is late] for late in (False, True)
        ]
        parts = [
            read([indices[k] - start for k in among])
            for read, start, among in zip((first, second), (0, size), places, strict=True)
            if among
        ]
        values: Tensor = torch.cat(parts)
        order = torch.tensor([k for among in places for k in among])
        return torch.empty_like(values).index_copy_(0, order, values)
