"""The base of data sets that hold another one and change a part of what it gives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from upslope.datasets.base import Dataset, place_of


class DatasetWrapper:
    """The samples of `dataset` under the ids they have there; what is not overridden is its own.

    dataset: what is read.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.name = dataset.name
        self.place = place_of(dataset)
        self.ids: Sequence[str] = dataset.ids
        self.classes = dataset.classes
        self.input_shape = tuple(dataset.input_shape)
        self.resident = dataset.resident

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return the inputs at positions, (n, *input_shape). indices: the positions."""
        return self.dataset.inputs(indices)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return the targets at positions, (n, ...). indices: the positions."""
        return self.dataset.targets(indices)
