"""Protocols of data sets: stable ids, inputs by index, and targets where somebody knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Dataset(Protocol):
    """Samples by index. Order and ids never change between two openings of the same files."""

    @property
    def name(self) -> str:
        """Return the name of this data set in messages."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """Return one stable id per sample."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes; their position is the label."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one input as `inputs` gives it: (c, h, w) for images."""
        ...

    @property
    def resident(self) -> bool:
        """Return whether all inputs fit in memory, so that training may keep them on the device."""
        ...

    def __len__(self) -> int: ...

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return inputs, (n, *input_shape): uint8 images in 0..255, or floats taken as they are.

        indices: positions in the data set.

        Raises:
            DataError: a sample cannot be read; the message names its file.
        """
        ...

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return targets, (n,) int64 labels, (n, h, w) uint8 masks ...: what an oracle would
        answer.

        indices: positions in the data set.

        Raises:
            DataError: nobody knows the label of one of these samples.
        """
        ...


@runtime_checkable
class HasLabels(Protocol):
    """A data set that knows its labels without reading samples; samples are drawn by them.

    Readers of labels ask `subset.labels_of` and `subset.knows_labels`.
    """

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return one label per sample, (n,); -1 where nobody knows it."""
        ...


@runtime_checkable
class HasStatistics(Protocol):
    """A data set of images whose statistics are published or stated by the user."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean per channel of images in 0..1; empty where it is not known."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Return the standard deviation per channel; empty where it is not known."""
        ...


@runtime_checkable
class HasPlace(Protocol):
    """A data set that knows the path that the user gave."""

    @property
    def place(self) -> str:
        """Return the path; empty where there is none."""
        ...


@runtime_checkable
class HasPairs(Protocol):
    """A data set of image files with mask files beside them, whose numbers `codes` reads."""

    @property
    def pairs(self) -> Sequence[Any]:
        """Return one pair per sample, with the fields `id`, `image` and `mask`, which are paths."""
        ...

    @property
    def codes(self) -> Any:
        """Return what makes classes of the numbers or colours in a file of masks."""
        ...


def place_of(dataset: Dataset) -> str:
    """Return what messages call a data set: the path that the user gave, where it is known.

    Data sets that know it have an attribute `place`; of others it is the name.
    """
    return (dataset.place if isinstance(dataset, HasPlace) else "") or dataset.name
