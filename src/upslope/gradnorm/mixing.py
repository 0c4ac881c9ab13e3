"""Models that mix samples have no loss gradient for a single one, and are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm.at_outputs import differentiable
from upslope.gradnorm.outputs import tensors_in

if TYPE_CHECKING:
    from upslope.gradnorm.recording import Recording

_NEAR, _NEAR_HALF = 1e-3, 3e-2
"""How far an output may move with the company of a sample, relative to the largest of its kind: other
sizes of batch go through other kernels of the libraries, which round differently."""


def compare_outputs(
    record: Recording, outputs: Any, rows: Tensor, shares: Sequence[Tensor] | None = None
) -> None:
    """Refuse a model whose outputs for some samples change when the others are not there.

    outputs: of the samples `rows` alone. shares: the loss's gradients at the outputs that are
    differentiable, which say what of the outputs the loss looks at; None: at all of them.

    Raises:
        GradientNormError: they do.
    """
    whole, some = tensors_in(record.outputs), tensors_in(outputs)
    if len(whole) != len(some):
        raise model_mixes(record, rows)
    looked = _looked_at(record.outputs, shares)
    half = record.is_half
    for all_, own in zip(whole, some, strict=True):
        if id(all_) in looked or all_.shape[:1] != (record.n,) or own.shape[:1] != (len(rows),):
            continue
        ours = all_.detach()[rows.to(all_.device)]
        if ours.shape != own.shape:
            raise model_mixes(record, rows)
        if ours.numel() == 0:
            continue
        near = _NEAR_HALF if half else _NEAR
        size = torch.where(torch.isfinite(ours), ours.abs(), 0).max()
        same = (own.detach() - ours).abs() <= near * size + near**2
        same |= (own.detach() == ours) | (own.isnan() & ours.isnan())
        if not bool(same.all()):
            wrong = rows[(~same).flatten(1).any(dim=1).cpu()] if same.dim() > 1 else rows
            raise model_mixes(record, wrong)


def _looked_at(outputs: Any, shares: Sequence[Tensor] | None) -> set[int]:
    """The ids of the outputs that the loss does not look at: no gradient reaches them."""
    if shares is None:
        return set()
    ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
    if len(ends) != len(shares):
        return set()
    return {id(end) for end, share in zip(ends, shares, strict=True) if not bool(share.any())}


def model_mixes(record: Recording, samples: Tensor) -> GradientNormError:
    """The error for a model that mixes samples. samples: the indices of those that show it."""
    which = [record.batch.first + int(i) for i in samples[:3]]
    return GradientNormError(
        "Expected a model that treats each sample by itself but its outputs for samples "
        f"{which} of {record.n} change when others of the batch are not there: the model mixes "
        "samples, so that none has a loss gradient of its own. Layers that normalise or attend over "
        "the batch must be in eval mode or be replaced."
    )
