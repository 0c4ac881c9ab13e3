"""Figures of a regression, accumulated over batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from upslope.tasks.output_checks import refuse_unknown


class _Answers(Protocol):
    def predictions(self, outputs: Any) -> Tensor: ...


class RegressionMetrics:
    """r2, rmse, mae, and of several targets rmse/<name>; in the units of the targets.

    r2 is 1 - sum (y - f)^2 / sum (y - mean y)^2, the mean over targets: 0 for the best constant,
    below it for worse. Of a target that is the same everywhere it is 1 where the errors are 0,
    else 0. rmse and mae are over all numbers.
    """

    def __init__(self, task: _Answers, names: Sequence[str]) -> None:
        self._task = task
        self._names = tuple(names)
        k = len(self._names)
        self._count = 0
        self._squares = torch.zeros(k, dtype=torch.float64)
        self._absolute = torch.zeros(k, dtype=torch.float64)
        self._mean = torch.zeros(k, dtype=torch.float64)
        self._spread = torch.zeros(k, dtype=torch.float64)  # sum of (y - mean)^2

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count n samples. outputs: what the model returned for them; targets: (n, k).

        Raises:
            ModelError: outputs that are NaN or infinite.
        """
        y = targets.detach().cpu().double()
        predictions = self._task.predictions(outputs).detach().cpu().double()
        refuse_unknown(~predictions.isfinite(), "numbers", "NaN or infinite")
        error = predictions - y
        self._squares += error.square().sum(dim=0)
        self._absolute += error.abs().sum(dim=0)
        # Means of batches merged (Chan, Golub and LeVeque 1983): no difference of large sums.
        n, total = len(y), self._count + len(y)
        shift = y.mean(dim=0) - self._mean
        self._spread += (y - y.mean(dim=0)).square().sum(dim=0)
        self._spread += shift.square() * self._count * n / total
        self._mean += shift * n / total
        self._count = total

    def compute(self) -> dict[str, float]:
        """Return the figures over everything seen; empty before the first `update`."""
        if not self._count:
            return {}
        numbers = self._count * len(self._names)
        constant = torch.where(self._squares > 0, 0.0, 1.0).double()
        share = self._squares / torch.where(self._spread > 0, self._spread, 1.0)
        r2 = torch.where(self._spread > 0, 1 - share, constant)
        figures = {
            "r2": float(r2.mean()),
            "rmse": math.sqrt(float(self._squares.sum()) / numbers),
            "mae": float(self._absolute.sum()) / numbers,
        }
        if len(self._names) > 1:
            errors = (self._squares / self._count).sqrt().tolist()
            figures |= {f"rmse/{n}": v for n, v in zip(self._names, errors, strict=True)}
        return figures
