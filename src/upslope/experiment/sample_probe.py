"""Numbers that tell whether samples are still what they were when a run began.

Ids do not: those that are counted, as `pool-00042`, fit any data. So a few samples are looked at
when a run begins, and again whenever it is opened. Rounding, as of another version of what decodes
images, is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from upslope.datasets.base import Dataset
from upslope.errors import DataError

_COUNT = 16
"""Samples looked at, evenly over a data set."""
_CLOSE = 0.02
"""Part of a sample's deviation that its numbers may differ by: a level or two of a photograph."""

Probe = Mapping[str, Sequence[float]]


def probe_samples(dataset: Dataset | None, *, with_targets: bool = False) -> dict[str, list[float]]:
    """Return id -> numbers that tell a few samples from others; none of no data set.

    dataset: the pool, the test set or the validation set; 16 samples are read at most.
    with_targets: whether their targets are among what must stay, as those of a test set.
    """
    if dataset is None:
        return {}
    count = min(_COUNT, len(dataset))
    places = {i * (len(dataset) - 1) // max(count - 1, 1) for i in range(count)}
    probes = {i: _probe_at(dataset, i, with_targets) for i in sorted(places)}
    return {dataset.ids[i]: numbers for i, numbers in probes.items() if numbers is not None}


def other_samples(
    before: Probe, dataset: Dataset | None, *, with_targets: bool = False
) -> tuple[str, ...]:
    """Return the ids under which a data set now has other samples than `before` tells of.

    before: as `probe_samples` returned it. dataset, with_targets: as there.

    Those that are not there any more, or cannot be read, are passed over.
    """
    if dataset is None:
        return ()
    places = {id_: i for i, id_ in enumerate(dataset.ids) if id_ in before}
    other_ids = []
    for id_, i in places.items():
        now = _probe_at(dataset, i, with_targets)
        if now is not None and not _is_close(before[id_], now):
            other_ids.append(id_)
    return tuple(other_ids)


def _probe_at(dataset: Dataset, position: int, with_targets: bool) -> list[float] | None:
    """Deviation, mean and two weighted means of an input, and of a target; None if unreadable."""
    try:
        numbers = _summary(dataset.inputs([position]))
        numbers += _summary(dataset.targets([position])) if with_targets else []
    except DataError:  # a damaged image, or a label that nobody knows: told where it is needed
        return None
    return numbers if all(map(math.isfinite, numbers)) else None  # a ledger holds no others


def _summary(values: Tensor) -> list[float]:
    """(deviation, mean, mean under two waves) of a sample's numbers."""
    x = values.detach().cpu().double().flatten()
    steps = torch.arange(len(x), dtype=torch.float64)
    waves = [torch.cos(steps * frequency) for frequency in (0.37, math.pi / max(len(x), 1))]
    mean = float(x.mean()) if len(x) else 0.0
    deviation = float((x - mean).square().mean().sqrt()) if len(x) else 0.0
    return [deviation, mean, *(float((x * wave).mean()) for wave in waves)]


def _is_close(one: Sequence[float], other: Sequence[float]) -> bool:
    if len(one) != len(other):
        return False
    for start in range(0, len(one), 4):  # of the input, and of the target
        before, now = one[start : start + 4], other[start : start + 4]
        room = _CLOSE * before[0] + 1e-4 * abs(before[1]) + 1e-9
        if any(abs(a - b) > room for a, b in zip(before, now, strict=True)):
            return False
    return True
