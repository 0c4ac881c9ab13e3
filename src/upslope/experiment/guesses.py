"""Predictions for the samples that were chosen, by the model that chose them, for the record.

Reports show it beside the labels that came later. Nothing here changes what a run does next.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upslope.datasets.base import Dataset
from upslope.errors import ConfigError, ModelError
from upslope.ledger import Label
from upslope.pool import Need, PoolView, Selection
from upslope.progress import Stop
from upslope.scoring import compute_signals
from upslope.tasks.base import Task
from upslope.tasks.mask_answers import encode_mask

BINS = 24
"""Bars of the histogram of scores: few enough to be told apart in a small picture."""
MASK_SIDE = 96
"""Pixels along the longer side of a predicted mask as it is recorded: for a look, not to measure
by; a few hundred bytes per sample."""

_PREDICTIONS = Need.of("predictions")
_POSTERIOR = Need.of("probabilities", evaluated=True)  # of the class that is predicted


def predict_chosen(
    model: nn.Module,
    task: Task,
    pool: Dataset,
    positions: Sequence[int],
    device: torch.device,
    batch_size: int,
    stop: Stop,
) -> dict[str, Any]:
    """Return what a model predicts for samples of the pool, in the form of the ledger's labels.

    `guesses` has an entry per sample, None where it cannot be read or the prediction has a form
    that no record takes; `confidences`, where there is one class per sample, the probability of
    that class. Empty where nothing is to be predicted.

    model: in eval mode. positions: in the pool. batch_size: samples at a time.

    Raises:
        Interrupted: a stop was requested.
    """
    if not positions:
        return {}

    def signal(need: Need) -> tuple[tuple[int, ...], Tensor]:
        table = compute_signals(
            [need], model, task, pool, positions,
            device=device, seed=0, batch_size=batch_size, on_corrupt="skip", stop=stop,
        )  # fmt: skip
        return table.candidates, table.signals[need]

    read, values = signal(_PREDICTIONS)
    guesses = dict(zip(read, (_as_label(value) for value in values), strict=True))
    body: dict[str, Any] = {"guesses": [guesses.get(position) for position in positions]}
    if len(read) and values.ndim == 1 and not values.is_floating_point():
        # A task without a posterior, or a model of the user's own without logits, says so.
        with contextlib.suppress(ConfigError, ModelError):
            read, posterior = signal(_POSTERIOR)
            if posterior.ndim == 2 and bool(torch.isfinite(posterior).all()):
                best = dict(zip(read, posterior.amax(dim=1).double().tolist(), strict=True))
                body["confidences"] = [_short(best.get(position)) for position in positions]
    return body


def count_scores(view: PoolView, selection: Selection) -> dict[str, Any]:
    """Return the histogram of the scores of all candidates: `low`, `high` and `counts`.

    Empty where the strategy has no scores, or where one is not finite.

    view: the candidates. selection: what the strategy chose, with a score per candidate.
    """
    scores = selection.scores
    if scores is None or not len(view) or not bool(torch.isfinite(scores).all()):
        return {}
    values = scores.double()
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        return {}
    counts = torch.histc(values, BINS, low, high) if high > low else torch.tensor([len(values)])
    return {"histogram": {"low": low, "high": high, "counts": counts.long().tolist()}}


def _as_label(value: Tensor) -> Label:
    """One prediction as the ledger holds labels; None for a form that it does not hold."""
    if not bool(torch.isfinite(value.float()).all()):
        return None
    if value.ndim == 0:
        return [float(value)] if value.is_floating_point() else int(value)
    if value.ndim == 1:
        entries: list[Any] = value.tolist()
        return entries
    if value.ndim == 2 and not value.is_floating_point() and int(value.min()) >= 0:
        return encode_mask(_small(value).numpy()) if int(value.max()) <= 255 else None
    return None


def _small(mask: Tensor) -> Tensor:
    """Return a mask of at most `MASK_SIDE` pixels along a side, by the nearest pixel, uint8."""
    scale = MASK_SIDE / max(mask.shape)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in mask.shape]
        mask = F.interpolate(mask[None, None].float(), size=size, mode="nearest")[0, 0]
    return mask.to(torch.uint8)


def _short(probability: float | None) -> float | None:
    return None if probability is None else round(probability, 6)
