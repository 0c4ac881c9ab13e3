"""The labels of annotators, laid over the pool: the only targets that training sees."""

from __future__ import annotations

import hashlib
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

_MOST_NUMBERS = 1000
"""Numbers of one label that the ledger holds: some 20 KB."""


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
    """The data set's own answer: classes, numbers or label sets, or None for masks.

    Raises:
        DataError: nobody knows a label, or it is not one of the classes.
    """
    return oracle_body(pool, position, ids)["labels"] if ids else {}


def oracle_body(
    pool: Dataset, position: Mapping[str, int], ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The data set's own answers as an event holds them: `labels`, and `masks`, the digests of
    those that stay out of the ledger. Raises as `oracle`."""
    targets = dict(zip(ids, pool.targets([position[i] for i in ids]), strict=True))
    labels = {i: own_label(i, target, pool.classes) for i, target in targets.items()}
    masks = {i: mask_digest(targets[i]) for i, label in labels.items() if label is None}
    return {"labels": labels, **({"masks": masks} if masks else {})}


def mask_digest(target: Tensor) -> str:
    """Return what tells a target that the data set holds from others: 16 digits of a SHA-256."""
    data = repr(tuple(target.shape)).encode() + target.cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def own_label(id_: str, target: Tensor, classes: Sequence[str]) -> Label:
    """Return a target of the data set as the ledger holds it, or None where it stays out of it.

    Masks do, and what is as large: the ledger would be as large as the data. The numbers are those
    of the target, bit for bit. id_: of the sample, for messages. classes: of the data set.

    Raises:
        DataError: it is none of the classes, or not finite.
    """
    if target.ndim > 1 or target.numel() > _MOST_NUMBERS:
        return None
    label: Label = target.tolist()
    if not target.ndim:
        check_range(id_, label, classes)
    elif not bool(torch.isfinite(target).all()):
        raise DataError(
            f"Expected finite numbers in the target of {id_!r} but got {label}. Correct the "
            "targets of the data set, or leave the sample out."
        )
    return label


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
