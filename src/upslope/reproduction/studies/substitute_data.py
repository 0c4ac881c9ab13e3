"""Substitutes for the paper's data, made of data sets at hand; `open_study` calls them.

    imbalanced      classes in the proportions of SVHN's, which Tables 7 and 8 print
    forty-classes   the first forty classes alone, of a data set with more
    masks           a segmentation: every bright pixel is of its image's class, the rest background
    volumes         images extruded along z: a classification of volumes, noise free
    noisy-volumes   the same volumes with Gaussian noise, at a signal to noise ratio of 0.05

With the last three the smoke scale runs the code of Figures 2 and 4 on built-in data.
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
from upslope.datasets.wrapper import DatasetWrapper
from upslope.errors import DataError
from upslope.reproduction.paper import SVHN_TEST
from upslope.seeds import generator

SNR = 0.05
"""Variance of the signal over that of the noise, as in the paper's 50c-snr005."""
BRIGHT = 128
"""Grey value, of 0 to 255, from which on a pixel belongs to the class of its image."""
CLASSES_OF_FORTY = 40
"""Classes that `forty_classes` leaves."""


def cut_classes(splits: Splits) -> Splits:
    """Cut the pool to the class proportions of SVHN; the test set stays as it is.

    splits: with ten classes. Of each class the pool keeps its first samples, and as many of all as
    the class with the fewest allows.

    Raises:
        DataError: there are not ten classes, or the pool has no sample of one.
    """
    labels = labels_of(splits.pool)
    sizes = np.bincount(labels[labels >= 0], minlength=len(splits.pool.classes))
    if len(sizes) != len(SVHN_TEST) or not sizes.all():
        raise DataError(
            f"Expected {len(SVHN_TEST)} classes with samples to cut in SVHN's proportions but "
            f"{splits.pool.name} has {int((sizes > 0).sum())} of {len(sizes)}."
        )
    scale = float(np.min(sizes / np.array(SVHN_TEST)))
    parts = [
        np.flatnonzero(labels == c)[: max(1, int(scale * count))]
        for c, count in enumerate(SVHN_TEST)
    ]
    return replace(splits, pool=Subset(splits.pool, np.sort(np.concatenate(parts)).tolist()))


def forty_classes(splits: Splits) -> Splits:
    """Cut pool and test set to the samples of the first forty classes; no validation set is left.

    splits: a classification, of forty classes or more to have an effect.
    """

    def cut(dataset: Dataset) -> Dataset:
        positions = np.flatnonzero(labels_of(dataset) < CLASSES_OF_FORTY)
        return FirstClasses(Subset(dataset, positions.tolist()))

    return replace(splits, pool=cut(splits.pool), test=cut(splits.test), validation=None)


class FirstClasses(DatasetWrapper):
    """A data set whose samples all belong to the first forty classes: it names no other.

    dataset: the data set, cut to those samples.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.classes = dataset.classes[:CLASSES_OF_FORTY]


class Masks(DatasetWrapper):
    """A segmentation made of a classification of images.

    dataset: images of one label each. The target is a mask, (n, h, w) uint8: the class of the
    image where it is bright, and one more class, `background`, elsewhere.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.classes = (*dataset.classes, "background")

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return the masks at positions, (n, h, w) uint8."""
        bright = self.inputs(indices).amax(dim=1) >= BRIGHT
        labels = self.dataset.targets(indices).view(-1, 1, 1)
        return torch.where(bright, labels, len(self.classes) - 1).to(torch.uint8)


class Volumes(DatasetWrapper):
    """A classification of volumes made of one of images.

    dataset: images, (n, c, h, w). The input is (n, 1, w, h, w) float32: the grey image at every z,
    standardised.
    snr: variance of the signal over that of Gaussian noise, which depends on the sample's id alone;
    None for no noise.
    """

    def __init__(self, dataset: Dataset, snr: float | None = None) -> None:
        super().__init__(dataset)
        _, h, w = self.input_shape
        self.input_shape = (1, w, h, w)
        self.snr = snr

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return the volumes at positions, (n, 1, w, h, w); mean 0, variance 1 before the noise."""
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


def _wrap_all(kind: Callable[[Dataset], Dataset], splits: Splits) -> Splits:
    validation = splits.validation
    return replace(
        splits,
        pool=kind(splits.pool),
        test=kind(splits.test),
        validation=None if validation is None else kind(validation),
    )


SUBSTITUTES: Mapping[str, Callable[[Splits], Splits]] = {
    "imbalanced": cut_classes,
    "forty-classes": forty_classes,
    "masks": partial(_wrap_all, Masks),
    "volumes": partial(_wrap_all, Volumes),
    "noisy-volumes": partial(_wrap_all, partial(Volumes, snr=SNR)),
}
"""Name -> the function from the splits of a data set to those of its substitute."""
