"""The labels of annotators, laid over the pool: the only targets that training sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.datasets.base import Dataset
from upslope.datasets.wrapper import DatasetWrapper
from upslope.errors import DataError
from upslope.ledger import Label
from upslope.tasks.mask_answers import decode_mask


class LabelledPool(DatasetWrapper):
    """The pool, with targets from `labels`: id -> label, None where the data set holds it."""

    def __init__(self, pool: Dataset, labels: Mapping[str, Label]) -> None:
        super().__init__(pool)
        self._labels = labels

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by its attributes: where the pool is held already, it is not to travel.
        return LabelledPool, (self.dataset, self._labels)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n, ...) labels as told, or the data set's own."""
        answers = [self._labels[self.ids[i]] for i in indices]
        if all(label is None for label in answers):
            return self.dataset.targets(indices)
        if all(label is not None for label in answers):
            return as_target(answers)
        return torch.stack(
            [
                self.dataset.targets([i])[0] if label is None else as_target(label)
                for i, label in zip(indices, answers, strict=True)
            ]
        )


@dataclass(frozen=True)
class TargetsOf:
    """The targets of these samples, read when asked for: masks of a whole set may be large."""

    pool: LabelledPool
    indices: Sequence[int]

    def __getitem__(self, places: list[int], /) -> Tensor:
        """Return the targets at these places, (n, ...)."""
        return self.pool.targets([self.indices[i] for i in places])


def oracle(pool: Dataset, position: Mapping[str, int], ids: Sequence[str]) -> dict[str, Label]:
    """The data set's own answer: labels, or None where a target is more than one number.

    Raises:
        DataError: nobody knows a label, or it is not one of the classes.
    """
    if not ids:
        return {}
    targets = pool.targets([position[i] for i in ids])
    if targets.dim() > 1:
        return dict.fromkeys(ids, None)
    answer: dict[str, Label] = dict(zip(ids, targets.tolist(), strict=True))
    for i, label in answer.items():
        check_range(i, label, pool.classes)
    return answer


def as_target(label: Any) -> Tensor:
    """The target that a label is, () or (k,), or that several are, (n, ...): int64, or float32
    for numbers; of masks uint8, (h, w) or (n, h, w)."""
    if isinstance(label, str):
        return torch.from_numpy(decode_mask(label))
    if isinstance(label, list) and any(isinstance(one, str) for one in label):
        return torch.stack([as_target(one) for one in label])
    target = torch.tensor(label)
    return target.float() if target.is_floating_point() else target


def check_range(id_: str, label: Any, classes: Sequence[str]) -> None:
    """Raise DataError unless a label is a position among the classes, a whole number."""
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(classes):
        raise DataError(
            f"Expected the label of {id_!r} to be a whole number between 0 and "
            f"{len(classes) - 1}, one of the {len(classes)} classes, but got {label}. Correct the "
            "targets of the data set."
        )
