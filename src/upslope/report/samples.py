"""The samples of a run, opened again from the data set that its configuration names.

A run records ids, labels and guesses; pictures, texts and features are those of the data set as it
lies there now. Where it cannot be opened, or holds other samples, reports go without, and say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from upslope.config import find_source, load_trained_model, recorded_pool
from upslope.datasets import root_of, row_contents
from upslope.datasets.base import Dataset
from upslope.errors import DataError, UpslopeError
from upslope.files import json_digest
from upslope.ledger import RunResult
from upslope.pool import Need
from upslope.progress import Observer, no_progress
from upslope.report.thumbnails import LARGE_SIDE, SIDE, mask_picture, thumbnail
from upslope.scoring import compute_signals

EXCERPT = 160
"""Letters of a text, or of a row, that are shown."""
WIDEST = 4096
"""Numbers per sample up to which inputs are taken for a map where there are no features."""


@dataclass(frozen=True)
class PoolSamples:
    """The pool of a run. texts: id -> what there is to read, of texts and tables.

    has_masks: targets are masks, which are drawn over the images.
    """

    pool: Dataset
    texts: Mapping[str, str] = field(default_factory=dict)
    has_masks: bool = False

    @cached_property
    def position(self) -> dict[str, int]:
        """Return the place of each id in the pool."""
        return {id_: i for i, id_ in enumerate(self.pool.ids)}

    def picture(self, id_: str) -> str | None:
        """Return the thumbnail of a sample; None where there is none, or it cannot be read."""
        try:
            inputs = self.pool.inputs([self.position[id_]])[0]
        except (DataError, KeyError):
            return None
        return thumbnail(inputs, LARGE_SIDE if self.has_masks else SIDE)

    def mask(self, id_: str, ignore: int | None) -> str | None:
        """Return the mask of a sample as a picture; None where there is none."""
        if not self.has_masks:
            return None
        try:
            target = self.pool.targets([self.position[id_]])[0]
        except (DataError, KeyError):
            return None
        return mask_picture(target.to(torch.uint8).numpy(), ignore) if target.ndim == 2 else None

    def text(self, id_: str) -> str | None:
        """Return the beginning of a text, or of the cells of a row."""
        text = self.texts.get(id_)
        if text is None:
            return None
        return text if len(text) <= EXCERPT else f"{text[:EXCERPT].rstrip()} …"


def open_samples(run: RunResult, observer: Observer = no_progress) -> PoolSamples:
    """Open the pool of a run.

    observer: is told of samples read.

    Raises:
        UpslopeError: the run does not say what its data are, they cannot be opened, or hold other
            samples now.
    """
    pool, config = recorded_pool(run, observer)
    digest = run.config.get("samples", {}).get("pool_ids_sha256")
    if digest is not None and digest != json_digest(list(pool.ids)):
        raise DataError(
            f"Expected the samples of the run in {run.path} in the data set {config.data.name!r} "
            "but it holds others now."
        )
    texts: dict[str, str] = {}
    root = root_of(config.data.name, config.root)
    if root is not None and config.data.name in ("table", "text"):
        rows = row_contents(root, config.data.options)
        texts = {
            id_: next(iter(cells.values()))
            if len(cells) == 1
            else " · ".join(f"{name}: {cell}" for name, cell in cells.items())
            for id_, cells in rows.items()
        }
    return PoolSamples(pool, texts, _has_masks(pool))


@dataclass(frozen=True)
class Features:
    """values: (n, d), a vector per sample. positions: of the samples that could be read. name: what
    they are, in words."""

    values: Tensor
    positions: tuple[int, ...]
    name: str


def features_of(
    run: RunResult, samples: PoolSamples, positions: Sequence[int], observer: Observer = no_progress
) -> Features:
    """Return a feature vector per sample.

    The features are those of the run's last network, in front of its last layer; where it has none
    or is no longer there, the inputs themselves, if they are not more than 4,096 numbers.

    Raises:
        DataError: neither can be had.
    """
    why = ""
    try:
        network = load_trained_model(find_source(run.path), observer, samples.pool)
        need = Need.of("features")
        table = compute_signals(
            [need], network.model, network.task, network.pool, positions,
            device=network.device, seed=0, on_corrupt="skip",
        )  # fmt: skip
        name = "features of the last network, in front of its last layer"
        return Features(table.signals[need].flatten(start_dim=1), table.candidates, name)
    except UpslopeError as error:
        why = str(error)
    if int(np.prod(samples.pool.input_shape)) > WIDEST:
        raise DataError(why)
    inputs = samples.pool.inputs(positions).double().flatten(start_dim=1)
    return Features(inputs, tuple(positions), "the inputs as they are")


def _has_masks(pool: Dataset) -> bool:
    """Tell whether the targets of the first sample that has one are masks."""
    for index in range(min(len(pool), 20)):
        try:
            return pool.targets([index]).ndim == 3
        except DataError:
            continue
    return False
