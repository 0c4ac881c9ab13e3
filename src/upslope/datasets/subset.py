"""Parts of a data set, and the rule by which they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from upslope.datasets.arrays import UNKNOWN, Labels
from upslope.datasets.base import Dataset, HasLabels
from upslope.datasets.wrapper import DatasetWrapper


class Subset(DatasetWrapper):
    """The samples of `dataset` at `positions`, under the ids they have there."""

    def __init__(self, dataset: Dataset, positions: Sequence[int]) -> None:
        super().__init__(dataset)
        self.positions = np.asarray(positions, dtype=np.int64)
        self.ids = tuple(dataset.ids[i] for i in self.positions)

    @property
    def labels(self) -> Labels:
        """Return (n,) labels, `UNKNOWN` where there is none."""
        return labels_of(self.dataset)[self.positions]

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return the inputs of some samples, (n, *input_shape).

        indices: positions in the subset.
        """
        return self.dataset.inputs(self.positions[np.asarray(indices, dtype=np.int64)].tolist())

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return targets (n, ...). Raises DataError for a sample without a label.

        indices: positions in the subset.
        """
        return self.dataset.targets(self.positions[np.asarray(indices, dtype=np.int64)].tolist())


def origin(dataset: Dataset, index: int) -> tuple[Dataset, int]:
    """Return the data set that a sample was read by, beneath all subsets, and its place there."""
    while isinstance(dataset, Subset):
        index = int(dataset.positions[index])
        dataset = dataset.dataset
    return dataset, index


def labels_of(dataset: Dataset) -> Labels:
    """Return (n,) labels to stratify by; all `UNKNOWN` for a data set without one label per
    sample.
    """
    if isinstance(dataset, HasLabels):
        return dataset.labels
    return np.full(len(dataset), UNKNOWN, dtype=np.int64)


def knows_labels(dataset: Dataset) -> bool:
    """Return whether the data set that samples were read by knows its labels."""
    return len(dataset) > 0 and isinstance(origin(dataset, 0)[0], HasLabels)


def draw(ids: Sequence[str], labels: Labels, count: int, purpose: str) -> tuple[Labels, Labels]:
    """Return (drawn, rest): `count` positions that hold every label in proportion, and the others.

    Within a label, samples are taken in the order of the SHA-256 of purpose and id: the draw
    depends on nothing else, neither on a seed nor on the order of the files, so that a set opened
    twice, or on two machines, is divided alike. Both results are in ascending order.
    """
    values, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(np.int64)
    # Largest remainders get the samples that rounding down has left over; ties by label.
    left_over = count - int(quota.sum())
    quota[np.argsort(-(exact - quota), kind="stable")[:left_over]] += 1
    keys = [hashlib.sha256(f"{purpose}/{i}".encode()).digest() for i in ids]
    positions: list[int] = []
    for value, size in zip(values, quota, strict=True):
        members = np.flatnonzero(labels == value).tolist()
        positions += sorted(members, key=keys.__getitem__)[:size]
    sorted_positions = np.array(sorted(positions), dtype=np.int64)
    return sorted_positions, np.setdiff1d(np.arange(len(ids), dtype=np.int64), sorted_positions)
