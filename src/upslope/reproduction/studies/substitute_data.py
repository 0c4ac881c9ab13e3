"""Data in place of the paper's, made of what is at hand.

    imbalanced      classes in the proportions of SVHN's, which Tables 7 and 8 print
    forty-classes   the first forty classes alone, of a data set with more
    masks           a segmentation: every bright pixel is of its image's class, the rest background
    volumes         images extruded along z: a classification of volumes, noise free
    noisy-volumes   the same volumes with Gaussian noise, at a signal to noise ratio of 0.05

The last three let the smoke scale walk the paths of Figures 2 and 4 on built-in data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from upslope.datasets import Splits, Subset
from upslope.datasets.base import Dataset
from upslope.datasets.subset import labels_of
from upslope.errors import DataError
from upslope.reproduction.paper import SVHN_TEST
from upslope.seeds import generator

NOISE = 0.05
"""Variance of the signal over that of the noise, as in 50c-snr005."""
BRIGHT = 128
FEWER = 40


def imbalanced(splits: Splits) -> Splits:
    """The pool with its ten classes in the proportions of SVHN's; the test set as it is.

    As large as the rarest class allows; within a class the first samples are kept.

    Raises:
        DataError: not ten classes, or one that the pool does not hold.
    """
    labels = labels_of(splits.pool)
    sizes = np.bincount(labels[labels >= 0], minlength=len(splits.pool.classes))
    if len(sizes) != len(SVHN_TEST) or not sizes.all():
        raise DataError(
            f"Expected {len(SVHN_TEST)} classes with samples to cut in SVHN's proportions but "
            f"{splits.pool.name} has {int((sizes > 0).sum())} of {len(sizes)}."
        )
    scale = float(np.min(sizes / np.array(SVHN_TEST)))
    kept = [
        np.flatnonzero(labels == c)[: max(1, int(scale * count))]
        for c, count in enumerate(SVHN_TEST)
    ]
    return replace(splits, pool=Subset(splits.pool, np.sort(np.concatenate(kept)).tolist()))


def forty_classes(splits: Splits) -> Splits:
    """Samples of the first forty classes."""

    def first(dataset: Dataset) -> Dataset:
        return Fewer(Subset(dataset, np.flatnonzero(labels_of(dataset) < FEWER).tolist()))

    return replace(splits, pool=first(splits.pool), test=first(splits.test), validation=None)


class _Around:
    """A data set in another form, under the ids it has."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.name = dataset.name
        self.ids = dataset.ids
        self.classes = dataset.classes
        self.input_shape = tuple(dataset.input_shape)
        self.resident = dataset.resident

    def __len__(self) -> int:
        return len(self.dataset)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, *input_shape)."""
        return self.dataset.inputs(indices)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """What an oracle would answer."""
        return self.dataset.targets(indices)


class Fewer(_Around):
    """Of which no sample has a later class."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.classes = dataset.classes[:FEWER]


class Masks(_Around):
    """(n, h, w) uint8: the class of the image where it is bright, one more class elsewhere."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.classes = (*dataset.classes, "background")

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n, h, w)."""
        bright = self.inputs(indices).amax(dim=1) >= BRIGHT
        labels = self.dataset.targets(indices).view(-1, 1, 1)
        return torch.where(bright, labels, len(self.classes) - 1).to(torch.uint8)


class Volumes(_Around):
    """(n, 1, w, h, w) float32: the grey image at every z, standardised; noise by id where request."""

    def __init__(self, dataset: Dataset, snr: float | None = None) -> None:
        super().__init__(dataset)
        _, h, w = self.input_shape
        self.input_shape = (1, w, h, w)
        self.snr = snr

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, 1, w, h, w): mean 0, variance 1 of each, before the noise."""
        grey = self.dataset.inputs(indices).float().mean(dim=1)
        grey = grey - grey.mean(dim=(1, 2), keepdim=True)
        grey = grey / grey.std(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        volumes = grey[:, None, None].expand(-1, *self.input_shape).contiguous()
        if self.snr is None:
            return volumes
        noise = torch.stack(
            [
                torch.randn(self.input_shape, generator=generator(0, "noise", self.ids[i]))
                for i in indices
            ]
        )
        noisy: Tensor = volumes + noise / math.sqrt(self.snr)
        return noisy


def _both(kind: Callable[[Dataset], Dataset], splits: Splits) -> Splits:
    held = splits.validation
    return replace(
        splits,
        pool=kind(splits.pool),
        test=kind(splits.test),
        validation=None if held is None else kind(held),
    )


SUBSTITUTES: Mapping[str, Callable[[Splits], Splits]] = {
    "imbalanced": imbalanced,
    "forty-classes": forty_classes,
    "masks": partial(_both, Masks),
    "volumes": partial(_both, Volumes),
    "noisy-volumes": partial(_both, partial(Volumes, snr=NOISE)),
}
"""name -> what makes it of a data set's splits."""
