"""What a data set is: stable ids, inputs by index, and, where somebody knows them, targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Dataset(Protocol):
    """Samples by index. Order and ids never change between two openings of the same files."""

    @property
    def name(self) -> str:
        """What messages call this data set."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """One stable id per sample."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; their position is the label."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as `inputs` gives it: (c, h, w) for images."""
        ...

    @property
    def resident(self) -> bool:
        """True where all inputs fit in memory and training may keep them on the device."""
        ...

    def __len__(self) -> int: ...

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, *input_shape): uint8 images in 0..255, or floats taken as they are.

        Raises:
            DataError: a sample cannot be read; the message names its file.
        """
        ...

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n,) int64 labels, (n, h, w) uint8 masks ...: what an oracle would answer.

        Raises:
            DataError: nobody knows the label of one of these samples.
        """
        ...


@dataclass(frozen=True)
class Splits:
    """The pool that is learnt from, the test set that nothing but evaluation reads, and perhaps a
    validation set, the only one that may choose a checkpoint. The test set is empty where nothing
    is labelled yet.

    notes: plain sentences, each about what a reader left out, converted or left unlabelled: what,
    how many, and how to decide otherwise. They are shown to people and recorded nowhere.

    `print(splits)` shows the classes with counts and the notes, as the plan of a run does.
    """

    pool: Dataset
    test: Dataset
    validation: Dataset | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line per split, with its classes and counts, and one per note."""
        from upslope.datasets.overview import overview  # which imports the kinds of data sets

        return "\n".join(f"{title}: {text}" for title, text in overview(self))
