"""Reading what can be read, where some samples cannot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.datasets.base import Dataset
from upslope.errors import DataError


def readable(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return (inputs of those that can be read (m, *input_shape), mask of these among all (n,))."""
    try:
        return dataset.inputs(indices), torch.ones(len(indices), dtype=torch.bool)
    except DataError:
        pass  # At least one: each by itself tells which.
    inputs: list[Tensor] = []
    mask = torch.zeros(len(indices), dtype=torch.bool)
    for i, index in enumerate(indices):
        try:
            inputs.append(dataset.inputs([index]))
        except DataError:
            continue
        mask[i] = True
    return (torch.cat(inputs) if inputs else torch.empty(0)), mask


def input_type(dataset: Dataset) -> str | None:
    """Return "uint8", "float" or the name of another type: what numbers the inputs are.

    By the first sample that can be read; None where none can.
    """
    try:
        sample = first_readable(dataset, 1)
    except DataError:
        return None
    return "float" if sample.is_floating_point() else str(sample.dtype).removeprefix("torch.")


def first_readable(
    dataset: Dataset, count: int = 2, indices: Sequence[int] | None = None
) -> Tensor:
    """Return the inputs of the first `count` samples that can be read, fewer where there are not.

    indices: where to look; in all of the data set where not given.

    Raises:
        DataError: none can be read; what the last one says.
    """
    inputs: list[Tensor] = []
    places = range(len(dataset)) if indices is None else indices
    for number, i in enumerate(places, 1):
        try:
            inputs.append(dataset.inputs([i]))
        except DataError:
            if number == len(places) and not inputs:
                raise
        if len(inputs) == count:
            break
    return torch.cat(inputs)
