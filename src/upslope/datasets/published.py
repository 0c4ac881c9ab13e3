"""Published sizes of data sets, which stand in for files that are not there yet in a plan.

An `Outline` has the sizes and shapes of a data set and random content: what a run costs can be
measured on it, nothing can be learnt from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.datasets.arrays import Labels, number_ids
from upslope.datasets.splits import Splits


@dataclass(frozen=True)
class PublishedSplits:
    """Counts of samples and classes, and the shape of an input as its reader gives it.

    masks: whether targets are of an input's height and width, not one label per sample.
    floats: whether inputs are floats, not images of 0..255.
    """

    pool: int
    test: int
    classes: int
    shape: tuple[int, ...]
    validation: int = 0
    masks: bool = False
    floats: bool = False


PUBLISHED_SPLITS: Mapping[str, PublishedSplits] = {
    "mnist": PublishedSplits(60_000, 10_000, 10, (1, 28, 28)),
    "fashion-mnist": PublishedSplits(60_000, 10_000, 10, (1, 28, 28)),
    "cifar10": PublishedSplits(50_000, 10_000, 10, (3, 32, 32)),
    "cifar100": PublishedSplits(50_000, 10_000, 100, (3, 32, 32)),
    "svhn": PublishedSplits(73_257, 26_032, 10, (3, 32, 32)),
    "tiny-imagenet-32": PublishedSplits(100_000, 10_000, 200, (3, 32, 32)),
    "caltech101": PublishedSplits(6_942, 1_735, 101, (3, 224, 224)),  # the split of `caltech`
    "imagenet": PublishedSplits(1_281_167, 50_000, 1_000, (3, 224, 224)),
    "camvid": PublishedSplits(367, 233, 11, (3, 360, 480), validation=101, masks=True),
    "cityscapes": PublishedSplits(2_975, 500, 19, (3, 1024, 2048), masks=True),
    "50c-clean": PublishedSplits(24_000, 1_000, 50, (1, 32, 32, 32), floats=True),
    "50c-snr005": PublishedSplits(24_000, 1_000, 50, (1, 32, 32, 32), floats=True),
}
"""Name of a data set -> what is known of it without its files."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A data set without its files: right in number and shape, random in content.

    labels: zeros, since nobody knows how many of each class there are.
    """

    name: str
    count: int
    number_of_classes: int
    input_shape: tuple[int, ...]
    masks: bool
    floats: bool
    resident: bool = False

    @cached_property
    def ids(self) -> Sequence[str]:
        """Return ids made of the name and a number."""
        return number_ids(self.name.rpartition("/")[2], self.count)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the numbers of the classes as their names."""
        return tuple(str(i) for i in range(self.number_of_classes))

    @property
    def labels(self) -> Labels:
        """Return (n,) zeros, by which parts are drawn."""
        return np.zeros(self.count, dtype=np.int64)

    @property
    def mean(self) -> tuple[float, ...]:
        """One number per channel, of images."""
        return () if self.floats else (0.5,) * self.input_shape[0]

    @property
    def std(self) -> tuple[float, ...]:
        """One number per channel, of images."""
        return () if self.floats else (0.25,) * self.input_shape[0]

    def __len__(self) -> int:
        return self.count

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return (n, *input_shape), uint8 or floats, random."""
        rng, shape = torch.Generator().manual_seed(0), (len(indices), *self.input_shape)
        if self.floats:
            return torch.randn(shape, generator=rng)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return (n,) int64 or (n, h, w) uint8, random."""
        rng = torch.Generator().manual_seed(0)
        shape = (len(indices), *(self.input_shape[1:] if self.masks else ()))
        kind = torch.uint8 if self.masks else torch.int64
        return torch.randint(0, self.number_of_classes, shape, dtype=kind, generator=rng)


def outline(name: str, options: Mapping[str, Any]) -> Splits | None:
    """Return a data set as published and as its options make it; None where nothing is known of it.

    The options that every data set has are not applied: `apply_common_options` does that.
    """
    outline_of_name = PUBLISHED_SPLITS.get(name)
    if outline_of_name is None:
        return None
    if (size := options.get("size")) is not None:
        outline_of_name = replace(outline_of_name, shape=(outline_of_name.shape[0], size, size))
    if (width := options.get("width")) is not None:
        outline_of_name = replace(
            outline_of_name, shape=(outline_of_name.shape[0], width // 2, width)
        )
    outline_of_name = replace(
        outline_of_name,
        pool=options.get("train", outline_of_name.pool),
        test=options.get("test", outline_of_name.test),
    )

    def part(split: str, count: int) -> Outline:
        return Outline(
            f"{name}/{split}",
            count,
            outline_of_name.classes,
            outline_of_name.shape,
            outline_of_name.masks,
            outline_of_name.floats,
        )

    validation = (
        part("validation", outline_of_name.validation) if outline_of_name.validation else None
    )
    return Splits(
        part("train", outline_of_name.pool), part("test", outline_of_name.test), validation
    )
