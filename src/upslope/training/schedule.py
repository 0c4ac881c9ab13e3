"""The learning rate as a function of the position alone: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from upslope.training.settings import TrainingSettings

_WARM_UP = 0.2  # share of all steps spent rising, from a tenth of the peak


def learning_rate(settings: TrainingSettings, epoch: int, progress: float) -> float:
    """The rate in `epoch` (from 0), where `progress` of all steps (0 to 1) lie behind.

    one-cycle rises in a line from lr/10 to lr over the first fifth of the steps, then falls to 0
    along half a cosine; triangular rises alike, and falls to 0 in a line.
    """
    if settings.schedule == "milestones":
        return settings.lr * settings.gamma ** sum(epoch >= m for m in settings.milestones)
    if settings.schedule == "constant":
        return settings.lr
    if progress < _WARM_UP:
        return settings.lr * (0.1 + 0.9 * progress / _WARM_UP)
    share_done = (progress - _WARM_UP) / (1 - _WARM_UP)
    if settings.schedule == "one-cycle":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * share_done))
    return settings.lr * (1 - share_done)
